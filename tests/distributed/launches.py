"""Launches of real processes, as they end or while they run, and what they trained."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune.engines.launch.configs import find_config
from tests.support.cli import run_process

NO_COMPILER = shutil.which("g++") is None or shutil.which("ninja") is None
"""DeepSpeed compiles an extension at its first run; without these `finetune train --launch zero...` is
refused."""


@dataclass
class Launched:
    """A launch that ended."""

    code: int
    stdout: str
    stderr: str
    run: Path | None

    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained."""
        assert self.run is not None
        folder, name = (
            (self.run / "adapter", "adapter_model")
            if (self.run / "adapter").is_dir()
            else (self.run / "model", "model")
        )
        return load_file(folder / f"{name}.safetensors")

    def losses(self, name: str = "train/loss") -> list[float]:
        """The logged losses, in order."""
        assert self.run is not None
        entries = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return [entry[name] for entry in entries if name in entry]

    def summary(self) -> dict[str, Any]:
        """The run's outcome."""
        assert self.run is not None
        found: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return found


Train = Callable[..., Launched]


def accelerate_launch(engine: str, processes: int = 2) -> list[str]:
    """The command by which accelerate itself starts processes with a shipped file."""
    config = str(find_config(engine).path)
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        config,
        "--num_processes",
        str(processes),
        "--main_process_port",
        "0",
    ]


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative L2 of all weights together."""
    assert one.keys() == other.keys()
    flat = [
        torch.cat([weights[name].double().flatten() for name in sorted(weights)]) for weights in (one, other)
    ]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def start_launch(recipe: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    """A launch of two processes that goes on by itself."""
    command = [
        sys.executable,
        "-m",
        "finetune",
        "train",
        str(recipe),
        "--launch",
        "ddp",
        "--processes",
        "2",
        *options,
    ]
    return subprocess.Popen(
        command, env=environment, cwd=recipe.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def resume_launch(run: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Resume a run in two processes, and wait for them."""
    options = ("--resume", str(run), "--launch", "ddp", "--processes", "2")
    return run_process("train", *options, cwd=run.parents[1], environment=environment, timeout=120)

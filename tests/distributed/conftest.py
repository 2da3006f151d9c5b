"""Real launches: `finetune train --launch` in processes of its own, on the tiny base."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from finetune.engines.launch.configs import find_config

NO_COMPILER = shutil.which("g++") is None or shutil.which("ninja") is None
"""DeepSpeed compiles an extension at its first run; without these `finetune train --launch zero...` is refused."""

ROOT = Path(__file__).resolve().parents[2]


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
            (self.run / "adapter", "adapter_model") if (self.run / "adapter").is_dir() else (self.run / "model", "model")
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


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One thread for each process, and the checkout's code."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(tmp_path / "trackio")}


@pytest.fixture
def train(tiny_base: Path, alpaca_file: Path, tmp_path: Path, environment: dict[str, str]) -> Train:
    """train("--launch", "ddp", ..., adapter={...}) -> how `finetune train` with these options and sections ended."""

    def run(
        *options: str, seconds: float = 300, code: int | None = 0, command: list[str] | None = None, **sections: Any
    ) -> Launched:
        tree: dict[str, dict[str, Any]] = {
            "model": {"base": str(tiny_base)},
            "adapter": {},
            "data": {
                "train": [{"path": str(alpaca_file), "format": "alpaca"}],
                "evaluation": {"fraction": 0.2},
                "max_length_tokens": 128,
                "pack_length_tokens": 128,
            },
            "train": {"global_batch_size": 4, "precision": "fp32", "learning_rate": 1e-2, "max_steps": 4},
            "tracking": {"tracker": "none"},
            "output": {"folder": str(tmp_path / "runs")},
        }
        tree = {name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections}
        recipe = tmp_path / "recipe.yaml"
        with recipe.open("w") as file:
            YAML().dump(tree, file)
        if NO_COMPILER and code != 2 and any("zero" in option for option in (*options, *(command or ()))):
            pytest.skip("DeepSpeed needs g++ and ninja")
        before = set((tmp_path / "runs").glob("*")) if (tmp_path / "runs").is_dir() else set()
        words = [*(command or [sys.executable, "-m", "finetune"]), "train", str(recipe), *options]
        done = subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=seconds
        )
        new = sorted(set((tmp_path / "runs").glob("*")) - before) if (tmp_path / "runs").is_dir() else []
        found = Launched(done.returncode, done.stdout, done.stderr, new[0] if new else None)
        assert code is None or done.returncode == code, f"{words} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return found

    return run


def accelerate_launch(engine: str) -> list[str]:
    """The command by which accelerate itself starts two processes with a shipped file."""
    config = str(find_config(engine).path)
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative L2 of all weights together."""
    assert one.keys() == other.keys()
    flat = [torch.cat([weights[name].double().flatten() for name in sorted(weights)]) for weights in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())

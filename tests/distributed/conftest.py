"""Real launches: `finetune train --launch` in processes of its own, on the tiny base."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.distributed.launches import NO_COMPILER, Launched, Train
from tests.support.cli import run_here

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One thread for each process, and the checkout's code."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }


@pytest.fixture
def train(
    tiny_base: Path,
    alpaca_file: Path,
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Train:
    """train("--launch", "ddp", ..., adapter={...}) -> how `finetune train` with these options and sections
    ended.

    Without options it is one process's training, and runs inside the test's.
    """

    def run(
        *options: str,
        seconds: float = 300,
        code: int | None = 0,
        command: list[str] | None = None,
        **sections: Any,
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
        if options or command:
            done = subprocess.run(
                words,
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
            )
            ended, printed = done.returncode, (done.stdout, done.stderr)
        else:
            with monkeypatch.context() as here:
                here.chdir(tmp_path)
                here.setenv("TRACKIO_DIR", environment["TRACKIO_DIR"])
                result = run_here(here, capsys, "train", str(recipe))
            ended, printed = result.code, (result.stdout, result.stderr)
        new = sorted(set((tmp_path / "runs").glob("*")) - before) if (tmp_path / "runs").is_dir() else []
        assert code is None or ended == code, f"{words} gave {ended}:\n{printed[0]}\n{printed[1]}"
        return Launched(ended, *printed, new[0] if new else None)

    return run

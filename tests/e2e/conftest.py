"""The command line as a user runs it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

Finetune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def finetune(tmp_path: Path) -> Finetune:
    """finetune("train", "recipe.yaml", code=0) runs the command in tmp_path and checks its exit code."""

    def run(*arguments: str, code: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "TRACKIO_DIR": str(tmp_path / "trackio"),
        }
        # A user has every core; one thread is for the tiny matrices inside the tests' own process.
        environment.pop("OMP_NUM_THREADS", None)
        command = [sys.executable, "-m", "finetune", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
        assert result.returncode == code, f"{arguments} gave {result.returncode}:\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        return result

    return run


@dataclass
class Result:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def finetune_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The same command line inside the test's process: importing torch and peft takes seconds, once is enough."""
    from finetune.cli.app import run as run_command

    def run(*arguments: str, code: int = 0) -> Result:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        capsys.readouterr()
        found = run_command()
        printed = capsys.readouterr()
        assert found == code, f"{arguments} gave {found}:\n{printed.out}\n{printed.err}"
        assert "Traceback" not in printed.err
        return Result(printed.out, printed.err)

    return run

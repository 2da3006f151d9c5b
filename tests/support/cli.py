"""The command line, in this process or in one of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Finetune = Callable[..., subprocess.CompletedProcess[str]]
"""The fixture finetune."""


@dataclass
class Result:
    """What a command printed, and its exit code."""

    stdout: str
    stderr: str
    code: int = 0

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it is."""
        return json.loads(self.stdout)


FinetuneHere = Callable[..., Result]
"""The fixture finetune_here."""
Says = Callable[..., tuple[int, str]]
"""The fixture says."""


def run_here(monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *arguments: str) -> Result:
    """Run `finetune ARGUMENTS` inside the test's process: importing torch and peft takes seconds, once is
    enough."""
    from finetune.cli.app import run

    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    capture.readouterr()
    code = run()
    return Result(*capture.readouterr(), code)


def run_process(
    *arguments: str,
    cwd: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `finetune ARGUMENTS` in a process of its own; `options` are subprocess's.

    It has the test's environment with these variables, without those that are None.
    """
    changed = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    variables = {name: value for name, value in changed.items() if value is not None}
    command = [sys.executable, "-m", "finetune", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, **options
    )

"""The verb `data`, and recipes to run it on."""

import sys
from pathlib import Path

import pytest

from tests.unit.cli.audits import Data, Printed, Recipes


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Data:
    """data("recipe.yaml", code=0) runs the verb in tmp_path, with a cache of its own, and checks its exit code."""
    from finetune.cli.app import run as run_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, code: int = 0) -> Printed:
        monkeypatch.setattr(sys, "argv", ["finetune", "data", *arguments])
        capsys.readouterr()
        found = run_command()
        printed = Printed(*capsys.readouterr())
        assert found == code, f"{arguments} gave {found}:\n{printed.out}\n{printed.err}"
        assert "Traceback" not in printed.err
        return printed

    return run


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Recipes:
    return Recipes(tmp_path, tiny_base)

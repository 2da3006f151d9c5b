"""The verb `data`, and recipes to run it on."""

from pathlib import Path

import pytest

from tests.support.cli import FinetuneHere, Result, run_here
from tests.unit.cli.audits import Recipes


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> FinetuneHere:
    """data("recipe.yaml", code=0) runs the verb in tmp_path, with a cache of its own, and checks its exit
    code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, code: int = 0) -> Result:
        result = run_here(monkeypatch, capsys, "data", *arguments)
        assert result.code == code, f"{arguments} gave {result.code}:\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Recipes:
    return Recipes(tmp_path, tiny_base)

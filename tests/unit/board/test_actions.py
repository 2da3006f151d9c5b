"""Each form of the board is a command that the command line takes."""

from pathlib import Path
from typing import Any

import pytest
import typer

from finetune.board.actions import ACTIONS, EXPORT_FORMATS, Field, defaults, words_of
from finetune.board.workspace import Workspace
from finetune.cli.app import app
from tests.support.runs import make_run

FILLED = {
    "overrides": "train.epochs=2", "run": "new-001", "launch": "ddp", "format": "compressed", "quantize": "fp8",
    "gpu_memory": "80GiB", "allow_code": "a" * 64, "output": "out", "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def workspace(folder: Path) -> Workspace:
    """With a recipe and a run."""
    (folder / "x.yaml").write_text("extends: quickstart\n")
    make_run(folder / "runs", "x", loss=1.0)
    return Workspace(folder, folder / "runs")


def about(verb: str) -> str:
    return "x.yaml" if verb in ("check", "data", "plan", "train") else "x-001"


def parsed(words: list[str]) -> dict[str, Any]:
    """The options that a verb of the command line reads from words; none is run."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("finetune", words)
    command = group.get_command(context, words[0])
    found: dict[str, Any] = command.make_context(words[0], words[1:], parent=context).params
    return found


def filled(one: Field) -> str:
    return {"checkbox": "on", "number": "2"}.get(one.kind, FILLED.get(one.name, ""))


@pytest.mark.parametrize("verb", sorted(ACTIONS))
def test_an_untouched_form_is_a_command(verb: str, workspace: Workspace) -> None:
    """With what its fields hold at first."""
    words = words_of(workspace, verb, about(verb), defaults(workspace, verb, about(verb)))
    assert parsed(words)


@pytest.mark.parametrize("verb", sorted(ACTIONS))
def test_each_field_reaches_its_command(verb: str, workspace: Workspace) -> None:
    """What is filled in is among the words, and the command line takes them."""
    given = {one.name: filled(one) for one in ACTIONS[verb].fields}
    words = words_of(workspace, verb, about(verb), given)
    assert parsed(words)
    texts = [
        value
        for one, value in zip(ACTIONS[verb].fields, given.values(), strict=True)
        if one.kind != "checkbox"
    ]
    assert all(any(text in word for word in words) for text in texts)


@pytest.mark.torch
def test_each_format_of_exports_is_offered() -> None:
    """The list, which loads no torch, is the one of finetune export."""
    from finetune.exporting.options import FORMATS

    assert EXPORT_FORMATS == FORMATS

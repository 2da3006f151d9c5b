"""The engines: which one runs, and who may name one."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import environment
from finetune.engines import registry
from finetune.engines.registry import current, named
from finetune.engines.single import SINGLE

ROOT = Path(__file__).resolve().parents[3]
ASKED = {
    "is_deepspeed_enabled",
    "is_fsdp_enabled",
    "is_deepspeed_zero3_enabled",
    "ds_id",
    "ds_shape",
    "ds_numel",
}
"""How libraries are asked which engine runs, or whether one has cut a weight up."""
WHO_NAMES_ONE = {"finetune/cli/train.py", "finetune/environment.py", "finetune/training/inputs.py"}
"""Files that name one to a person, as what to type."""


def spelled(path: Path) -> Iterator[tuple[str, bool]]:
    """A file's string constants that are no docstrings, and its names; whether each is a string."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value, True
        elif isinstance(node, ast.Attribute):
            yield node.attr, False
        elif isinstance(node, ast.Name | ast.alias):
            yield node.id if isinstance(node, ast.Name) else node.name, False


OF_OTHER_TOOLS = ("finetune/recipe/aliases/", "finetune/conversion/")
"""The words there are keys and values of other tools' files; `deepspeed` is one of them."""


def test_nobody_else_names_an_engine() -> None:
    """Outside finetune/engines three files have an engine's name in a string, for people; none asks a library
    for one."""
    names = {engine.name for engine in registry.of_several()} | {"deepspeed"}
    written = re.compile(rf"\b({'|'.join(names)})\b")
    naming, asking = set[str](), set[str]()
    for path in (*(ROOT / "finetune").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")):
        own = str(path.relative_to(ROOT))
        if own.startswith(("finetune/engines/", *OF_OTHER_TOOLS)):
            continue
        for word, is_string in spelled(path):
            # In data_prep "single" is tokenizers' word for a template of one text.
            if is_string and (written.search(word) or (word == SINGLE.name and own.startswith("finetune/"))):
                naming.add(own)
            if word in ASKED:
                asking.add(own)
    assert naming == WHO_NAMES_ONE
    assert asking == set()


@pytest.fixture
def of_two() -> Iterator[None]:
    """What torch's agent says in one of two processes; the environment is as it was afterwards."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(environment.OF_ACCELERATE, ""))
    os.environ.update(
        {
            environment.AGENT: "run",
            "RANK": "1",
            "LOCAL_RANK": "1",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",
        }
    )
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "zero2"),
        ({"ACCELERATE_USE_DEEPSPEED": "True", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "ACCELERATE_USE_FSDP": "true"}, "single"),
    ],
)
@pytest.mark.usefixtures("of_two")
def test_the_launcher_says_which_one_runs(said: dict[str, str], expected: str) -> None:
    """By accelerate's variables, where there are several processes."""
    os.environ.update(said)
    assert current().name == expected


def test_names_are_found() -> None:
    """Each engine by its own name; a name that is none's is nobody."""
    assert [named(engine.name) for engine in registry.ENGINES] == list(registry.ENGINES)
    assert named("zero4") is None

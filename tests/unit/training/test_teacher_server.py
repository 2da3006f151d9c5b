"""A teacher behind a real server: finetune serve."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import ModelError
from tests.support.models import save_tiny_llama
from tests.support.preferences import column
from tests.support.processes import start
from tests.support.recipes import MakeRecipe, found
from tests.support.serving import Running, running

TRAIN: dict[str, Any] = {
    "precision": "fp32", "learning_rate": 1e-2, "max_steps": 3, "evaluate_every": 3, "rehearsal": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and one whose tokenizer has the same words in another order."""
    made = tmp_path_factory.mktemp("served")
    for name in ("teacher", "stranger"):
        save_tiny_llama(made / name, hidden_size=96, intermediate_size=64, initializer_range=0.1)
    path = made / "stranger" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = [word for word in tokenizer["model"]["vocab"] if not word.startswith("<")]
    numbers = [tokenizer["model"]["vocab"][word] for word in words]
    tokenizer["model"]["vocab"] |= dict(zip(words, reversed(numbers), strict=True))
    path.write_text(json.dumps(tokenizer))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """In float32."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("finetune.models.device.cpu_has_native_bf16", lambda: False)
        with running([f"teacher={folder / 'teacher'}"]) as found:
            yield found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing was asked before."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def served(address: str, model: str = "teacher", **changes: Any) -> dict[str, Any]:
    return {"kind": "distill", "teacher": f"{address}/v1", "teacher_model": model, "top_k": 8} | changes


def test_it_says_what_the_model_says_here(make_recipe: MakeRecipe, server: Running, folder: Path) -> None:
    """Losses are those of the same model, loaded; a run that goes on needs no server."""
    here = {"kind": "distill", "teacher": str(folder / "teacher"), "top_k": 8}
    runs = [start(make_recipe(train=TRAIN, objective=own)) for own in (here, served(server.address))]
    for name in ("train/loss", "eval/loss", "eval/teacher/loss", "eval/teacher/mass"):
        assert column(runs[1], name) == pytest.approx(column(runs[0], name), rel=1e-5), name


def test_another_tokenizer_is_noticed(make_recipe: MakeRecipe, folder: Path) -> None:
    """By what the server calls the tokens."""
    with (
        running([f"stranger={folder / 'stranger'}"]) as other,
        pytest.raises(ModelError, match="in the student's tokenizer: distributions are compared"),
    ):
        start(make_recipe(train=TRAIN, objective=served(other.address, "stranger")))


def test_a_name_that_is_not_served(make_recipe: MakeRecipe, server: Running) -> None:
    """The server's own words are told."""
    with pytest.raises(ModelError, match=r"answers 404: .*nobody.*Expected a server whose /completions"):
        start(make_recipe(train=TRAIN, objective=served(server.address, "nobody")))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("teacher: 'http://localhost:1/v1', top_k: 8", "objective.teacher_model  is missing"),
        (
            "teacher: 'http://localhost:1/v1', teacher_model: a",
            "objective.top_k  is missing: a server is asked",
        ),
        (
            "teacher: 'http://localhost:1/v1', teacher_model: a, top_k: 8, temperature: 2",
            "objective.temperature  a server tells probabilities at temperature 1",
        ),
        (
            "teacher: 'http://me:secret@localhost:1/v1', teacher_model: a, top_k: 8",
            "give the key in FINETUNE_API_KEY",
        ),
        ("teacher: base, teacher_model: a", "objective.teacher_model  is a server's name"),
    ],
)
def test_what_a_server_does_not_tell_is_refused(objective: str, message: str) -> None:
    """By the recipe's rules, with the key."""
    problems = found(f"objective: {{kind: distill, {objective}}}")
    assert any(message in problem for problem in problems), problems

"""A student that learns from what a teacher said before step 1: its likeliest tokens, out of the cache."""

import gc
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from data_prep.table.cache import clear
from finetune.errors import CheckpointError, RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.lock import read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training import run as training
from finetune.training import teacher_store
from finetune.training.inputs import build_inputs
from tests.support.messages import hearing, sending
from tests.support.models import save_tiny_llama
from tests.support.preferences import column
from tests.support.processes import adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe, found

ROOT = Path(__file__).resolve().parents[3]
TRAIN: dict[str, Any] = {
    "precision": "fp32", "learning_rate": 1e-2, "max_steps": 8, "evaluate_every": "4 steps", "rehearsal": False,
}  # fmt: skip
KILLED = """
import os, signal, sys
from finetune.cli.quiet import quiet_libraries
quiet_libraries()
from finetune.recipe.schema import Recipe
from finetune.training import run, teacher_store

teacher_store.SHARD_TOKENS, write, written = 1, teacher_store.write_private, []

def writing(path, content):
    write(path, content)
    written.append(path)
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

teacher_store.write_private = writing
run.start(Recipe.model_validate_json(sys.argv[1]), name="killed", command="test")
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for what teachers said, empty."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another shape than the student, which isn't sure of much."""
    folder = tmp_path_factory.mktemp("teachers") / "wide"
    save_tiny_llama(folder, hidden_size=96, intermediate_size=64, initializer_range=0.1)
    return folder


def offline(teacher: object, top_k: int = 16, **changes: Any) -> dict[str, Any]:
    """The objective."""
    return {"kind": "distill", "teacher": str(teacher), "top_k": top_k} | changes


def told(recipe: Recipe, name: str = "run") -> tuple[RunFolder, list[str]]:
    """A run, and what it said."""
    said: list[str] = []
    with hearing(said.append):
        return start(recipe, name), said


def asked(said: list[str]) -> list[str]:
    """The lines that say that a teacher was asked."""
    return [line for line in said if line.startswith("asked the teacher")]


def test_with_all_tokens_it_is_the_teacher_in_memory(
    make_recipe: MakeRecipe, teacher: Path, cache: Path
) -> None:
    """k = V: losses in training and evaluation are those of forward_kl, and so are the weights."""
    objective = {"kind": "distill", "teacher": str(teacher), "temperature": 1.5, "supervised_weight": 0.25}
    train = TRAIN | {"optimizer": "sgd", "learning_rate": 0.1}
    vocabulary = build_inputs(make_recipe(objective=offline(teacher))).objective.vocabulary  # type: ignore[attr-defined]
    online = start(make_recipe(train=train, objective=objective), "online")
    stored = start(make_recipe(train=train, objective=objective | {"top_k": vocabulary}), "stored")
    for name in (
        "train/loss",
        "eval/loss",
        "eval/losses/divergence",
        "eval/losses/supervised",
        "eval/teacher/loss",
    ):
        assert column(stored, name) == pytest.approx(column(online, name), rel=1e-5), name
    assert column(stored, "eval/teacher/mass") == pytest.approx([1.0] * 3)
    one, other = adapter_of(online), adapter_of(stored)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


def test_a_few_tokens_teach_too(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """The divergence falls; what the tokens hold is said before step 1 and logged."""
    run, said = told(make_recipe(train=TRAIN, objective=offline(teacher, 8)))
    losses = column(run, "eval/loss")
    assert losses[-1] < 0.9 * losses[0]
    (line,) = [line for line in said if "of rows for training its likeliest 8 of" in line]
    assert "% of its probability, in the mean of" in line
    held = column(run, "eval/teacher/mass")
    assert 0 < held[0] < 1
    assert held == pytest.approx(held[:1] * 3)


def test_packs_are_the_same(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """Each position of a pack has what the teacher said of its row."""
    runs = [
        start(make_recipe(train=TRAIN, objective=offline(teacher), data=data), name)
        for name, data in (("rows", {}), ("packs", {"pack_length_tokens": 256}))
    ]
    before = [run.read_summary()["evaluation_loss_before"] for run in runs]
    assert before[0] == pytest.approx(before[1], rel=1e-5)
    assert column(runs[1], "train/teacher/mass")[0] == pytest.approx(
        column(runs[0], "eval/teacher/mass")[0], abs=0.05
    )
    assert len(list(cache.glob("*/entry.json"))) == 2


def test_the_teacher_is_not_in_memory_while_the_student_trains(
    make_recipe: MakeRecipe, teacher: Path, cache: Path
) -> None:
    """At a step no model of its width is left."""
    seen: list[list[int]] = []

    def look(line: str) -> None:
        if line.startswith(("asked the teacher", "step 4/")):
            gc.collect()
            models = [own for own in gc.get_objects() if type(own) is LlamaForCausalLM]
            seen.append(sorted({model.config.hidden_size for model in models}))

    with hearing(look):
        start(make_recipe(train=TRAIN, objective=offline(teacher)))
    assert seen[0] == [96], seen
    assert seen[-1] == [64], seen


def test_the_base_without_its_adapter(make_recipe: MakeRecipe, cache: Path) -> None:
    """Before the first step it is the student, to rounding."""
    run = start(make_recipe(train=TRAIN, objective=offline("base", supervised_weight=0.5)))
    divergences = column(run, "eval/losses/divergence")
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert divergences[-1] > 1e-3


def test_rows_are_asked_about_once(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """Another run on the same rows loads no teacher; another temperature is another question."""
    train = TRAIN | {"max_steps": 1, "evaluate_every": "never"}
    first, said = told(make_recipe(train=train, objective=offline(teacher)), "first")
    again, said_again = told(
        make_recipe(train=train | {"learning_rate": 1e-3}, objective=offline(teacher)), "again"
    )
    assert asked(said)
    assert not [line for line in said_again if "asked the teacher" in line or "the model in" in line]
    assert column(first, "train/loss") == column(again, "train/loss")
    _, hotter = told(make_recipe(train=train, objective=offline(teacher, temperature=2.0)), "hotter")
    assert asked(hotter)


def test_a_stopped_run_continues_bit_for_bit(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """With the store, and with the same one made again; its hash is in the lock."""
    recipe = make_recipe(train=TRAIN, objective=offline(teacher))
    whole = start(recipe)
    for clears in (False, True):
        with hearing(sending({"step 2/": [signal.SIGTERM]})):
            run = start(recipe)
        assert run.outcome()["status"] == "stopped"
        if clears:
            for path in cache.glob("*/*"):
                path.unlink()
        training.resume(run.path, recipe=None)
        assert_equal(adapter_of(run), adapter_of(whole))
        assert len(read_lock(run.lock_path).final["document_values_sha256"]) == 64


@pytest.mark.long
def test_killed_while_the_teacher_is_asked(
    make_recipe: MakeRecipe, teacher: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle: what was said is there, the rest is asked, and the result is that of a run that
    wasn't killed."""
    recipe = make_recipe(train=TRAIN, objective=offline(teacher))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, recipe.model_dump_json()], cwd=ROOT, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list(cache.glob("*/*.npy"))) == 5
    monkeypatch.setattr(teacher_store, "SHARD_TOKENS", 1)
    run = RunFolder(Path(recipe.output.folder) / "killed-001")
    said: list[str] = []
    with hearing(said.append):
        training.resume(run.path, recipe=None)
    assert any(line.startswith("of what the teacher says 5 of") for line in said)
    monkeypatch.setenv("FINETUNE_CACHE", str(cache.parent / "other"))
    assert_equal(adapter_of(run), adapter_of(start(recipe)))


def test_a_damaged_part_is_asked_about_again(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """A file that was cut short is no part of the store."""
    recipe = make_recipe(train=TRAIN | {"max_steps": 1}, objective=offline(teacher))
    first = start(recipe, "first")
    for path in cache.glob("*/*.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    again, said = told(recipe, "again")
    assert asked(said)
    assert_equal(adapter_of(first), adapter_of(again))


def test_a_cache_that_is_cleared_meanwhile(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """A run in training holds what it reads; the cache is empty afterwards."""
    recipe = make_recipe(train=TRAIN, objective=offline(teacher))
    cleared: list[int] = []

    def clear_it(line: str) -> None:
        if line.startswith("step 1/"):
            cleared.append(clear(cache)[0])

    with hearing(clear_it):
        run = start(recipe)
    assert cleared == [2]
    assert run.read_summary()["status"] == "finished"
    assert not list(cache.glob("*/*"))


def test_other_answers_than_the_checkpoint_s_are_refused(
    make_recipe: MakeRecipe, teacher: Path, cache: Path
) -> None:
    """A run doesn't go on from what it didn't learn from."""
    with hearing(sending({"step 2/": [signal.SIGTERM]})):
        run = start(make_recipe(train=TRAIN, objective=offline(teacher)))
    for path in cache.glob("*/*.npy"):
        rows = np.load(path)
        rows["log_p"][0, 0] -= 1
        np.save(path, rows)
    for path in cache.glob("*/entry.json"):
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"what the teacher says has SHA-256 .* when checkpoint-[0-9] was taken"
    ):
        training.resume(run.path, recipe=None)


def test_more_tokens_than_there_are(tmp_path: Path, tiny_base: Path, alpaca_file: Path, cache: Path) -> None:
    """Refused at its place in the recipe, before the rows are read."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{base: {tiny_base}}}\n"
        "objective: {kind: distill, teacher: base,\n"
        "  top_k: 1000000}\n"
        f"data: {{train: [{{path: {alpaca_file}, format: alpaca}}], max_length_tokens: 128}}\n"
    )
    loaded = load_recipe(path)
    with (
        pytest.raises(
            RecipeError, match=r"recipe.yaml:3:10  objective.top_k  got 1,000,000, and teacher and"
        ),
        loaded.placing(),
    ):
        build_inputs(loaded.recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{objective: {kind: distill, teacher: base, top_k: 0}}", "objective.top_k"),
        (
            "{objective: {kind: distill, teacher: base, top_k: 8, divergence: reverse_kl}}",
            "objective.divergence  reverse_kl needs the teacher's probability of every token",
        ),
        (
            "{objective: {kind: distill, teacher: base, top_k: 8, divergence: jsd}}",
            "take forward_kl, or remove top_k",
        ),
        (
            "{objective: {kind: distill, teacher: base, top_k: 8}, data: {streaming: {buffer_rows: 100}},"
            " train: {max_steps: 5}}",
            "data.streaming  objective.top_k asks the teacher about every row before step 1",
        ),
        (
            "{objective: {kind: distill, teacher: base, top_k: 8}, data: {pack_length_tokens: 64, pack_split: true}}",
            "data.pack_split  objective.top_k asks the teacher about complete rows",
        ),
        (
            "{objective: {kind: distill, teacher: base, top_k: 8}, data: {pack_length_tokens: 64, attention: leaky}}",
            "data.attention  objective.top_k asks the teacher about each row alone",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(text: str, message: str) -> None:
    """By the recipe's rules, with the key."""
    assert any(message in problem for problem in found(text)), found(text)


def test_rows_are_of_two_lengths_of_context(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """Rows that were cut in two are asked about as they are learned."""
    data = {"max_length_tokens": 24, "over_length": "split"}
    objective = {"kind": "distill", "teacher": str(teacher)}
    vocabulary = build_inputs(make_recipe(objective=offline(teacher))).objective.vocabulary  # type: ignore[attr-defined]
    losses = [
        start(make_recipe(train=TRAIN | {"max_steps": 1}, objective=own, data=data), name).read_summary()[
            "evaluation_loss_before"
        ]
        for name, own in (("online", objective), ("stored", objective | {"top_k": vocabulary}))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_summary_of_a_store_is_json(make_recipe: MakeRecipe, teacher: Path, cache: Path) -> None:
    """What the tokens hold can be read beside the records."""
    start(make_recipe(train=TRAIN | {"max_steps": 1}, objective=offline(teacher)))
    for path in cache.glob("*/entry.json"):
        entry = json.loads(path.read_text())
        assert 0 < entry["least"] <= entry["mass"] <= 1

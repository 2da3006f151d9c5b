"""Resuming at the end, after an early stop, from torn files; orderly stops. Bit for bit, with real
signals."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune.errors import CheckpointError
from finetune.recipe.lock import read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training import run
from finetune.training.provenance import inexact_because, refuse_changes
from tests.support.messages import hearing
from tests.support.processes import EXACT, adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe

pytestmark = pytest.mark.usefixtures("hangup_heard")

EARLY = {
    "micro_batch_size": 8, "precision": "fp32", "optimizer": "sgd", "schedule": "constant",
    "max_gradient_norm": None, "learning_rate": 40.0 / 8, "max_steps": 60, "evaluate_every": 1,
    "early_stopping": {"patience_evaluations": 3},
}  # fmt: skip


def resume(folder: RunFolder) -> list[str]:
    said: list[str] = []
    with hearing(said.append):
        run.resume(folder.path, recipe=None)
    return said


@pytest.mark.parametrize("result", ["there", "half written", "moved aside", "absent"])
def test_a_run_killed_at_its_end_can_be_finished(make_recipe: MakeRecipe, result: str) -> None:
    """Killed after its last checkpoint (6 steps of epochs of 5), resume takes no step, whatever is there of
    the result."""
    folder = start(
        make_recipe(adapter={"rank": 4, "dropout": 0.1}, train=EXACT | {"max_steps": 6, "save_every": 6})
    )
    whole, before, metrics = adapter_of(folder), folder.read_summary(), folder.metrics_path.read_text()
    folder.write_summary({"status": "running"})
    if result == "half written":
        folder.adapter.rename(folder.path / ".adapter.partial")
        (folder.path / ".adapter.partial" / "adapter_model.safetensors").unlink()
    elif result == "moved aside":
        folder.adapter.rename(folder.path / ".adapter.old")
    elif result == "absent":
        shutil.rmtree(folder.adapter)
    assert "all steps were taken; what is left is to write the result" in resume(folder)
    after = folder.read_summary()
    assert_equal(adapter_of(folder), whole)
    assert folder.metrics_path.read_text() == metrics
    assert not list(folder.path.glob(".*"))
    for name in (
        "status",
        "steps",
        "tokens",
        "supervised_tokens",
        "train_loss",
        "evaluation_loss",
        "evaluation_loss_before",
    ):
        assert after[name] == before[name], name


def test_full_fine_tuning_resumes_bit_for_bit(make_recipe: MakeRecipe) -> None:
    """Method full, resumed from its middle and from its end, gives the same model each time."""
    tree = make_recipe(train=EXACT | {"max_steps": 6, "save_every": 3, "learning_rate": 1e-3}).model_dump(
        mode="json"
    )
    folder = start(Recipe.model_validate(tree | {"adapter": {"method": "full"}}))
    whole = load_file(folder.model / "model.safetensors")
    for lost in (None, 6):
        folder.write_summary({"status": "running"})
        if lost is not None:
            shutil.rmtree(folder.checkpoints / f"checkpoint-{lost}")
        resume(folder)
        assert_equal(load_file(folder.model / "model.safetensors"), whole)


def test_a_torn_metrics_line_and_a_damaged_checkpoint_are_no_obstacle(make_recipe: MakeRecipe) -> None:
    """With half a line in metrics.jsonl and the last checkpoint damaged, a run ends as if nothing had
    been."""
    folder = start(make_recipe(adapter={"rank": 4, "dropout": 0.1}, train=EXACT))
    whole, before, metrics = adapter_of(folder), folder.read_summary(), folder.metrics_path.read_text()
    (folder.checkpoints / "checkpoint-12" / "optimizer.pt").write_bytes(b"")
    shutil.rmtree(folder.adapter)
    folder.write_summary({"status": "running"})
    folder.metrics_path.write_text(metrics + '{"step": 12, "train/lo')
    said = resume(folder)
    assert any("checkpoint-12/optimizer.pt is absent or differs" in line for line in said)
    assert "resuming from checkpoint-8" in said
    assert_equal(adapter_of(folder), whole)
    entries = [
        [json.loads(line) for line in text.splitlines()]
        for text in (metrics, folder.metrics_path.read_text())
    ]
    for entry in entries[0] + entries[1]:
        entry.pop("train/tokens_per_second", None)
        entry.pop("system/memory_bytes", None)
    assert entries[0] == entries[1]
    assert folder.read_summary()["tokens"] == before["tokens"]


def test_an_early_stop_is_remembered(make_recipe: MakeRecipe) -> None:
    """A run killed after its early stop, and moved, takes no further step on resume; its result is the best
    checkpoint."""
    folder = start(make_recipe(train=EARLY))
    before, best = folder.read_summary(), adapter_of(folder)
    shutil.rmtree(folder.adapter)
    folder.write_summary({"status": "running"})
    moved = RunFolder(folder.path.rename(folder.path.with_name("moved")))
    resume(moved)
    after = moved.read_summary()
    assert_equal(adapter_of(moved), best)
    for name in ("status", "steps", "best_step", "evaluation_loss", "last_evaluation_loss"):
        assert after[name] == before[name], name


def interrupted(recipe: Recipe, at: str, *signals: signal.Signals) -> tuple[RunFolder, list[str]]:
    """A run that gets the signals when it says a line that starts with `at`."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith(at):
            for number in signals:
                os.kill(os.getpid(), number)

    with hearing(say):
        run.start(recipe, name="interrupted", command="test")
    return RunFolder(Path(recipe.output.folder) / "interrupted-001"), said


def test_an_early_stop_wins_over_an_interrupt(make_recipe: MakeRecipe) -> None:
    """With Ctrl-C in the step of the early stop, the run is finished and has its result."""
    last = start(make_recipe(train=EARLY)).read_summary()["steps"]
    folder, said = interrupted(make_recipe(train=EARLY), f"step {last - 1}/", signal.SIGINT)
    assert any(line.startswith("stopped early") for line in said)
    assert folder.read_summary()["status"] == "finished"
    assert folder.adapter.is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_in_order_and_are_given_back(make_recipe: MakeRecipe, number: signal.Signals) -> None:
    """SIGTERM, and SIGHUP of a closed terminal, save a checkpoint; afterwards the signals have their handlers
    again."""
    handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    recipe = make_recipe(train=EXACT)
    interrupted(recipe, "step 2/", number)
    folder = RunFolder(Path(recipe.output.folder) / "interrupted-001")
    assert folder.read_summary()["status"] == "stopped"
    assert (folder.checkpoints / "checkpoint-3" / "complete.json").is_file()
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_run_that_saves_never_can_be_stopped(make_recipe: MakeRecipe) -> None:
    """With save_every never a signal still saves a checkpoint; resumed from it the run ends as uninterrupted,
    and keeps none."""
    recipe = make_recipe(train=EXACT | {"save_every": "never"})
    whole = adapter_of(start(recipe))
    folder, _ = interrupted(recipe, "step 2/", signal.SIGTERM)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-3"]
    assert "resuming from checkpoint-3" in resume(folder)
    assert_equal(adapter_of(folder), whole)
    assert not list(folder.checkpoints.iterdir())


def test_a_second_interrupt_ends_at_once(make_recipe: MakeRecipe) -> None:
    """Ctrl-C twice in a step saves nothing more, and the summary says stopped."""
    recipe = make_recipe(train=EXACT)
    interrupted(recipe, "step 2/", signal.SIGINT, signal.SIGINT)
    folder = RunFolder(Path(recipe.output.folder) / "interrupted-001")
    assert folder.read_summary()["status"] == "stopped"
    assert not list(folder.checkpoints.iterdir())


def test_what_changes_the_arithmetic_is_refused_or_said(make_recipe: MakeRecipe) -> None:
    """Another precision is refused; another torch, device or number of threads is named."""
    lock = read_lock(start(make_recipe(train=EXACT | {"max_steps": 1})).lock_path)
    assert inexact_because(lock, lock) == []
    with pytest.raises(CheckpointError, match="then fp32, now bf16"):
        refuse_changes(lock, dataclasses.replace(lock, device=lock.device | {"precision": "bf16"}))
    now = dataclasses.replace(
        lock, versions=lock.versions | {"torch": "9.9"}, device=lock.device | {"type": "tpu", "threads": 77}
    )
    refuse_changes(lock, now)
    assert [line.split(":")[0] for line in inexact_because(lock, now)] == [
        "torch",
        "device type",
        "device threads",
    ]

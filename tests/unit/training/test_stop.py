"""Signals to a run: real ones, sent to this process at a moment that is known."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from finetune.runs.folder import RunFolder
from finetune.training import build, run
from finetune.training.checkpoints.store import complete_checkpoints
from tests.support.messages import hearing, sending
from tests.support.processes import EXACT, adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe

pytestmark = pytest.mark.usefixtures("hangup_heard")


def steps_of(folder: RunFolder, name: str) -> list[int]:
    entries = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    return [entry["step"] for entry in entries if name in entry]


def test_sigusr2_saves_and_sigusr1_stops(make_recipe: MakeRecipe) -> None:
    """After the step in which SIGUSR2 comes there is a checkpoint and the run goes on; SIGUSR1 ends it with
    one, and SIGTERM, which a scheduler sends after it, changes nothing; resumed, it ends in the uninterrupted
    run's adapter."""
    recipe = make_recipe(
        adapter={"rank": 4, "dropout": 0.1}, train=EXACT | {"save_every": 50, "keep_checkpoints": 5}
    )
    whole = start(recipe, "whole")
    say = sending({"step 2/": [signal.SIGUSR2], "step 6/": [signal.SIGUSR1, signal.SIGTERM]})
    with hearing(say):
        run.start(recipe, name="run", command="test")
    folder = RunFolder(Path(recipe.output.folder) / "run-001")
    assert [path.name for path in complete_checkpoints(folder.checkpoints)] == [
        "checkpoint-3",
        "checkpoint-7",
    ]
    assert folder.outcome()["status"] == "stopped"
    run.resume(folder.path, recipe=None)
    assert_equal(adapter_of(folder), adapter_of(whole))


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("moment", [(run, "build_inputs"), (build, "build_model"), (build, "build_trainer")])
def test_a_stop_before_the_first_step_leaves_no_folder(
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    name: signal.Signals,
    moment: tuple[ModuleType, str],
) -> None:
    """Whatever is being built, the end comes at once, as by Ctrl-C, and nothing stays behind."""
    place, function = moment
    monkeypatch.setattr(place, function, with_signal(getattr(place, function), name))
    recipe = make_recipe(train=EXACT)
    with pytest.raises(KeyboardInterrupt):
        start(recipe)
    runs = Path(recipe.output.folder)
    assert not runs.exists() or list(runs.iterdir()) == []


def test_a_checkpoint_that_is_asked_for_before_the_first_step_comes_after_it(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR2 while the model is being built neither kills nor is lost."""
    monkeypatch.setattr(build, "build_model", with_signal(build.build_model, signal.SIGUSR2))
    done = start(make_recipe(train=EXACT | {"max_steps": 3, "save_every": 50}))
    assert [path.name for path in complete_checkpoints(done.checkpoints)] == ["checkpoint-1", "checkpoint-3"]
    assert done.outcome()["status"] == "finished"


def with_signal(function: Callable[..., Any], name: signal.Signals) -> Callable[..., Any]:
    """The function, in the midst of which a signal comes."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        os.kill(os.getpid(), name)
        return found

    return wrapped


def test_what_was_measured_before_the_first_step_stands_once(make_recipe: MakeRecipe) -> None:
    """A run that ended before its first checkpoint begins again, and metrics.jsonl has each step once, step 0
    too."""
    recipe = make_recipe(train=EXACT | {"save_every": 50})
    with hearing(sending({"step 2/": [signal.SIGINT, signal.SIGINT]})):
        run.start(recipe, name="run", command="test")
    folder = RunFolder(Path(recipe.output.folder) / "run-001")
    assert steps_of(folder, "eval/loss") == [0]
    assert not complete_checkpoints(folder.checkpoints)
    run.resume(folder.path, recipe=None)
    assert steps_of(folder, "eval/loss") == [0, 12]
    assert steps_of(folder, "train/loss") == list(range(1, 13))

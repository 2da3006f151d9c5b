"""Prompts whose answers all have one reward, answered anew."""

import signal
from pathlib import Path
from typing import Any

import pytest

from finetune.training import run as training
from tests.support.grpo import OBJECTIVE, Asking, first_step
from tests.support.messages import hearing, sending
from tests.support.preferences import column
from tests.support.processes import adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import found

RARE = {"rare": {"kind": "regex", "pattern": "[0-9].*[0-9]"}}
"""Of two answers of this base to a prompt seldom one alone has it."""
SPARSE = OBJECTIVE | {"rewards": RARE, "group_size": 2}


def drawn(trainer: Any) -> list[list[tuple[int, ...]]]:
    """The answers of the groups that are learned from."""
    return [
        [tuple(one.token_ids) for one in group]
        for groups in trainer.rollouts.micro_batches
        for group in groups
    ]


def of_first_step(recipe: Any) -> tuple[list[list[tuple[int, ...]]], dict[str, float]]:
    trainer = trainer_of(recipe, Path("unused"))
    first_step(trainer)
    return drawn(trainer), trainer.rollouts.means()


def test_groups_find_a_signal(asking: Asking) -> None:
    """More prompts teach with more rounds; those that taught at once have the same answers, and the reward
    that is logged is that of the first draws."""
    train = {"global_batch_size": 12, "micro_batch_size": 12}
    groups, means = of_first_step(asking(objective=SPARSE, train=train))
    more, those = of_first_step(asking(objective=SPARSE | {"resample": 6}, train=train))
    assert 0 < len(groups) < len(more)
    assert {tuple(group) for group in groups} < {tuple(group) for group in more}
    assert those["groups_without_signal"] < means["groups_without_signal"]
    assert those["groups_resampled"] >= means["groups_without_signal"]
    assert those["reward"] == means["reward"]
    assert "groups_resampled" not in means


def test_a_round_asks_those_without_signal_alone(asking: Asking) -> None:
    """With one round as many groups are drawn anew as had no signal; with a constant reward, in each round
    all."""
    train = {"global_batch_size": 12, "micro_batch_size": 12}
    _, before = of_first_step(asking(objective=SPARSE, train=train))
    _, after = of_first_step(asking(objective=SPARSE | {"resample": 1}, train=train))
    assert after["groups_resampled"] == before["groups_without_signal"]
    same = SPARSE | {"rewards": {"same": {"kind": "regex", "pattern": "^"}}, "resample": 3}
    groups, constant = of_first_step(asking(objective=same, train=train))
    assert not groups
    assert constant["groups_resampled"] == 3
    assert constant["groups_without_signal"] == 1


def test_how_a_step_is_cut_changes_no_draw(asking: Asking) -> None:
    """Micro-batches of all prompts, and of one each, learn from the same answers."""
    cut = [
        of_first_step(asking(objective=SPARSE | {"resample": 2}, train={"micro_batch_size": size}))
        for size in (4, 1)
    ]
    assert cut[0] == cut[1]


def test_a_stopped_run_goes_on_bit_for_bit(asking: Asking) -> None:
    """What is drawn anew depends on seed, step, round and prompt."""
    objective = SPARSE | {"resample": 2, "epochs_per_sample": 2}
    recipe = asking(objective=objective, train={"max_steps": 6})
    whole = start(recipe, "whole")
    with hearing(sending({"step 3/": [signal.SIGTERM]})):
        stopped = start(recipe, "stopped")
    assert stopped.outcome()["status"] == "stopped"
    training.resume(stopped.path, recipe=None)
    assert_equal(adapter_of(stopped), adapter_of(whole))
    assert column(stopped, "train/groups_resampled") == column(whole, "train/groups_resampled")
    assert sum(column(whole, "train/groups_resampled")) > 0


@pytest.mark.parametrize("rounds", [-1, 101, "dynamic"])
def test_bad_rounds_are_refused(rounds: int | str) -> None:
    """By the recipe alone."""
    (line,) = found(
        f"objective: {{kind: grpo, resample: {rounds}, rewards: {{a: {{kind: regex, pattern: x}}}}}}"
    )
    assert line.startswith("objective.resample")

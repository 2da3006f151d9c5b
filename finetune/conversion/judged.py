"""KTO and reward models: which numbers a file has for them, under TRL's names."""

from collections.abc import Mapping
from typing import Any

from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, number
from finetune.conversion.preference import Asked, refused

KTO: Mapping[str, Any] = {
    "beta": 0.1,
    "loss_type": "kto",
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}
REWARD: Mapping[str, Any] = {"center_rewards_coefficient": 0.0}
"""The keys of TRL's trainers, with their defaults."""


def kto(draft: Draft, said: Asked, by: GivenKey | None) -> None:
    """KTOTrainer; `by` is the key that asks for it. Raises ConvertError for another of its losses."""
    loss = said.get("loss_type")
    if loss is not None and loss.value != "kto":
        raise refused(loss, str(loss.value))
    draft.carried(loss, "objective.kind")
    draft.put("objective.kind", "kto", by or f"{draft.title}'s KTO")
    for theirs, ours in (
        ("beta", "beta"),
        ("desirable_weight", "good_weight"),
        ("undesirable_weight", "bad_weight"),
    ):
        draft.carry(said[theirs], f"objective.{ours}", number(said[theirs]))
    draft.note("baseline", by or said["beta"])


def reward(draft: Draft, said: Asked, by: GivenKey | None) -> None:
    """RewardTrainer: Bradley and Terry's loss."""
    centering = said["center_rewards_coefficient"]
    draft.put("objective.kind", "reward", by or f"{draft.title}'s reward model")
    draft.carry(centering, "objective.centering", number(centering))
    draft.carried(by, "objective.kind")


def baseline(draft: Draft) -> None:
    """KTO's baseline is a mean: over a step here, there over the micro batches of one moment."""
    entry = draft.notes.pop("baseline", None)
    batch = draft.batch
    at_once = batch.micro * batch.processes
    rows = batch.whole if batch.whole is not None else at_once * batch.accumulation
    if entry is not None and rows > at_once:
        how = f"the baseline is the mean over a step's {rows} rows; there, of {at_once} at a time"
        draft.otherwise(entry, how, "objective.kind", changes=True)
    else:
        draft.carried(entry, "objective.kind")

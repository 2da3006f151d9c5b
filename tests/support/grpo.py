"""What tests of objective grpo share."""

from collections.abc import Callable
from typing import Any

from finetune.recipe.schema import Recipe

DIGITS = {"digits": {"kind": "regex", "pattern": "[0-9]"}}
SHORT = {"short": {"kind": "length", "most_tokens": 4, "margin_tokens": 8}}
OBJECTIVE: dict[str, Any] = {"kind": "grpo", "group_size": 6, "max_new_tokens": 12, "rewards": DIGITS | SHORT}
TRAIN: dict[str, Any] = {
    "precision": "fp32", "learning_rate": 1e-2, "schedule": "constant", "max_steps": 4,
    "global_batch_size": 4, "micro_batch_size": 2, "evaluate_every": "never", "rehearsal": False,
}  # fmt: skip

Asking = Callable[..., Recipe]
"""asking(section={...}) -> a recipe of 16 prompts, four of them held out."""


def first_step(trainer: Any) -> list[dict[str, Any]]:
    """The micro-batches of step 1, drawn by the model as it is."""
    asked = [batch for batch, _ in zip(trainer.feed, range(trainer.feed.batching.accumulation), strict=False)]
    found: list[dict[str, Any]] = trainer.rollouts.answered(asked)
    return found

"""The objective section: what is learned from a row."""

from typing import Any

from pydantic import ConfigDict

from data_prep.config import Section

REFERENCE = ("objective", "reference")
"""Where an objective that has a reference names it."""

REFERENCES = ("start", "base", "none")
"""References that are no adapter."""

TEACHER = ("objective", "teacher")
"""Where a distillation names its teacher."""

REWARDS = ("objective", "rewards")
"""Where an objective that draws answers says what they are worth."""

ON_POLICY = ("objective", "on_policy")
"""Where a distillation says how the student draws answers of its own."""

BASE = "base"
"""The teacher that is the student without its adapter."""


def is_server(teacher: str) -> bool:
    """Whether a teacher is a server's address."""
    return teacher.startswith(("http://", "https://"))


class ObjectiveSection(Section):
    """What is learned from a row. Each kind has keys of its own (finetune/objectives)."""

    # A kind's own keys are checked by its section, with the rules: the schema lies below the objectives.
    model_config = ConfigDict(extra="allow")

    kind: str = "supervised"
    """supervised: the answers of the rows, or with model.head their labels or numbers. dpo, ipo, hinge,
    robust (relative to a reference), orpo, simpo, cpo (without one): which of two answers is the better. kto:
    which answers are good ones. reward: a head that ranks answers. distill: what a teacher predicts. grpo:
    which of its own answers have the higher rewards."""

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own keys."""
        return dict(self.model_extra or {})

    @property
    def teaches(self) -> bool:
        """Whether there is a teacher."""
        return TEACHER[-1] in self.options

    @property
    def draws(self) -> bool:
        """Whether the model draws answers that it learns from."""
        return REWARDS[-1] in self.options or bool(self.options.get(ON_POLICY[-1]))

    @property
    def drawing(self) -> dict[str, Any]:
        """How it draws them, of an objective that draws."""
        own = self.options.get(ON_POLICY[-1])
        return {"group_size": 1, "epochs_per_sample": 1, **own} if own else self.options

    @property
    def compares(self) -> bool:
        """Whether something is measured from a reference."""
        options = self.options
        return options.get(REFERENCE[-1], "none") != "none" and options.get("kl_weight") != 0

    @property
    def names_reference(self) -> bool:
        """Whether the reference is an adapter of its own."""
        return self.options.get(REFERENCE[-1], "start") not in REFERENCES

"""Learning from pairs of a chosen and a rejected answer: what the objectives that compare the two share."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from data_prep.config import Section
from data_prep.pairs import PairEncoding
from finetune.objectives.base import Objective
from finetune.recipe.given import Given, RuleProblem, asked

if TYPE_CHECKING:
    import torch

    from finetune.models.loss import LossInputs
    from finetune.models.preference import PairScores
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.model import ModelSection

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]

NUMBERS = (
    "reward_accuracy", "reward_margin", "rewards/chosen", "rewards/rejected", "log_probabilities/chosen",
    "log_probabilities/rejected",
)  # fmt: skip
RATIOS = ("log_ratios/chosen", "log_ratios/rejected")
"""What is logged of pairs (finetune.models.preference.pair_numbers), RATIOS where there is a reference."""


class ReferenceOptions(Section):
    """Keys of objectives that compare with a reference."""

    reference: str = "start"
    """start: the model as it is before step 1; base: model.base without an adapter, where
    adapter.continue_from begins with another model; a run or an adapter (a folder, or a hub id) of the same
    base. Log-probabilities are computed once, before step 1, and kept with the run. none: every answer is
    taken to be as likely as any other."""

    @field_validator("reference")
    @classmethod
    def _named(cls, reference: str) -> str:
        if not reference.strip():
            raise ValueError("got nothing, expected start, base, none, or an adapter")
        return reference


def refers_to_base(recipe: "Recipe", reference: str) -> bool:
    """Whether a reference is the model without its adapter."""
    adapter = recipe.adapter
    starts_from_base = (
        adapter.continue_from is None and not adapter.starts_at_base and adapter.init != "loftq"
    )
    return adapter.method != "full" and (reference == "base" or (reference == "start" and starts_from_base))


class PairObjective(Objective):
    """A loss of the margin between the rewards of two answers; the mean over pairs.

    Shapes: P pairs.
    """

    encoding = PairEncoding()
    logged: tuple[str, ...] = NUMBERS
    supervises: ClassVar[float] = 0.0
    """Weight of the chosen answer's cross-entropy, where the recipe has no say in it."""

    def __init__(self, recipe: "Recipe"):
        super().__init__(recipe)
        self.reference = getattr(self.options, "reference", "none")
        self.has_reference = self.reference != "none"
        self.is_relative_to_base = refers_to_base(recipe, self.reference)
        self.values_per_document = 1 if self.has_reference else 0
        self.supervised_weight = float(getattr(self.options, "supervised_weight", self.supervises))
        parts = ("losses/preference", "losses/supervised") if self.supervised_weight else ()
        self.logged = (*type(self).logged, *(RATIOS if self.has_reference else ()), *parts)

    @classmethod
    def outcome(cls, model: "ModelSection") -> str:
        """Pairs, of which rewards are measured."""
        return "pairs"

    def rewards(self, scores: "PairScores") -> "torch.Tensor":
        """What the loss compares, of each answer (P x 2)."""
        raise NotImplementedError

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """The loss of each pair (P) by the margin between its rewards (P)."""
        raise NotImplementedError

    def supervised_loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs", scores: "PairScores"
    ) -> "torch.Tensor":
        """The cross-entropy per token of each chosen answer (P)."""
        return -scores.mean_log_probabilities[:, 0]

    def values(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """The log-probability of each answer."""
        from finetune.models.preference import pair_scores

        return pair_scores(model, hidden, inputs).log_probabilities.reshape(-1, 1)

    def loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The sum over the pairs, and that of what is logged of them.

        With supervised_weight each pair's loss has the cross-entropy of its chosen answer added, per token.
        """
        from finetune.models.preference import pair_numbers, pair_scores, summed

        scores = pair_scores(model, hidden, inputs, has_reference=self.has_reference)
        rewards = self.rewards(scores)
        losses = self.preference_loss(rewards[:, 0] - rewards[:, 1])
        numbers = pair_numbers(scores, rewards)
        if self.supervised_weight:
            supervised = self.supervised_loss(model, hidden, inputs, scores)
            numbers |= {"losses/preference": losses, "losses/supervised": supervised}
            losses = losses + self.supervised_weight * supervised
        return losses.sum(), summed(numbers, self.logged)

    def weight(self, batch: dict[str, Any]) -> "torch.Tensor":
        """Its pairs."""
        from finetune.models.batch import row_count

        return row_count(batch, self.encoding.documents_per_row)

    def problems(self, given: Given) -> RuleProblem:
        """All that is learned is how one answer compares with the other."""
        yield from super().problems(given)
        data = self.recipe.data
        if asked(self.recipe, given, "data.supervise") and data.supervise == "all":
            yield (
                "data.supervise",
                f"objective {self.kind} compares answers, without their prompts; remove this",
            )
        if data.loss_weights:
            yield "data.loss_weights", f"objective {self.kind} weighs an answer's tokens alike; remove this"

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """Which answer has the higher reward."""
        return ("reward_accuracy", "reward_margin")

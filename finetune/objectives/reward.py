"""A reward model: a head that gives an answer a number, higher for the better one of two."""

from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.config import HeadSection, Section
from data_prep.pairs import RewardEncoding
from finetune.objectives.pairs import PairObjective, Share, Smoothing
from finetune.recipe.given import Given, RuleProblem, asked

if TYPE_CHECKING:
    import torch

    from finetune.models.loss import LossInputs
    from finetune.recipe.schema.model import ModelSection

HEAD = HeadSection(problem="regression")
"""One number: what plain transformers loads as a sequence classifier with one label."""


class RewardOptions(Section):
    """Keys of objective reward."""

    label_smoothing: Smoothing = 0.0
    """The share of pairs whose labels are taken to be swapped."""
    centering: Share = 0.0
    """Weight of the squared sum of a pair's two rewards beside the loss, which brings their mean to 0
    (Eisenstein et al. 2023, arXiv:2312.09244; center_rewards_coefficient in TRL)."""


class Reward(PairObjective):
    """-log sigmoid of the margin between the two rewards, by Bradley and Terry's model; the mean over pairs.

    Ouyang et al. 2022, arXiv:2203.02155, equation 1. Of a row with a margin the rewards should differ by more
    than that: it is subtracted (Touvron et al. 2023, arXiv:2307.09288, equation 2). A reward is read behind
    the whole conversation, at the last token that the chat template writes, where
    AutoModelForSequenceClassification reads it.
    """

    kind: ClassVar[str] = "reward"
    section: ClassVar[type[Section]] = RewardOptions
    encoding = RewardEncoding()
    writes_text: ClassVar[bool] = False
    brought_head: ClassVar[HeadSection | None] = HEAD
    logged: tuple[str, ...] = ("reward_accuracy", "reward_margin", "rewards/chosen", "rewards/rejected")

    @classmethod
    def fits(cls, model: "ModelSection") -> bool:
        """A model gets the head with the objective, and may have it already."""
        return model.head in (None, HEAD)

    def problems(self, given: Given) -> RuleProblem:
        """It writes no text."""
        yield from super().problems(given)
        data = self.recipe.data
        if asked(self.recipe, given, "data.supervise") and data.supervise not in ("assistant", "all"):
            yield "data.supervise", "a reward is read behind the whole conversation; remove this"
        if self.recipe.tracking.samples is not None:
            yield "tracking.samples", "a reward model writes no text; remove this"
        if asked(self.recipe, given, "evaluate.max_new_tokens"):
            yield "evaluate.max_new_tokens", "a reward model writes no text; remove this"

    def prepare_model(self, model: Any, pad_token_id: int) -> None:
        """transformers reads a row's last token that isn't this one."""
        model.config.pad_token_id = pad_token_id

    def loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The sum over the pairs, and that of what is logged of them."""
        from finetune.models.classify import document_outputs
        from finetune.models.preference import preferred, reward_numbers, summed

        rewards = document_outputs(model, hidden, inputs)[:, 0].reshape(-1, 2)
        # Documents that fill up have none.
        asked = 0.0 if inputs.targets is None else inputs.targets[:, 0].to(rewards).reshape(-1, 2)[:, 0]
        losses = preferred(rewards[:, 0] - rewards[:, 1] - asked, self.options.label_smoothing)
        losses = losses + self.options.centering * rewards.sum(dim=1) ** 2
        return losses.sum(), summed(reward_numbers(rewards), self.logged)

"""Supervised fine-tuning: the cross-entropy of the answers' tokens."""

from typing import TYPE_CHECKING, Any, ClassVar

from finetune.objectives.base import Objective

if TYPE_CHECKING:
    import torch

    from finetune.models.loss import LossInputs
    from finetune.recipe.schema.model import ModelSection


class LanguageModeling(Objective):
    """The mean cross-entropy over supervised tokens, each by its weight."""

    kind: ClassVar[str] = "supervised"
    smooths_labels: ClassVar[bool] = True
    has_perplexity: ClassVar[bool] = True

    @classmethod
    def outcome(cls, model: "ModelSection") -> str:
        """Text, whose likelihood is measured too."""
        return "text"

    def loss(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """The sum of the cross-entropy; smoothed in training only, so that an evaluation loss is the plain
        cross-entropy."""
        from finetune.models.loss import supervised_loss

        return supervised_loss(model, hidden, inputs, self.recipe.train.label_smoothing)

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """Loss and perplexity, and exact match where rows have prompts."""
        return ("loss", "perplexity", "exact_match") if asks else ("loss", "perplexity")

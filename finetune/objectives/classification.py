"""Classification and regression: a head that reads a prompt's last token in place of the one that predicts
tokens."""

from typing import TYPE_CHECKING, Any, ClassVar, cast

from data_prep.labels import LabelEncoding
from finetune.objectives.base import Objective
from finetune.recipe.given import Given, RuleProblem, asked

if TYPE_CHECKING:
    import torch

    from data_prep.config import HeadSection
    from finetune.models.loss import LossInputs
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.model import ModelSection


class Classification(Objective):
    """The mean of the documents' losses: cross-entropy, binary cross-entropies, or the squared error
    (model.head.problem)."""

    kind: ClassVar[str] = "supervised"
    writes_text: ClassVar[bool] = False

    def __init__(self, recipe: "Recipe"):
        super().__init__(recipe)
        self.head = cast("HeadSection", recipe.model.head)  # see fits
        self.encoding = LabelEncoding(self.head)
        self.several_labels = self.head.problem == "multi_label"

    @classmethod
    def outcome(cls, model: "ModelSection") -> str:
        """The head's problem."""
        return cast("HeadSection", model.head).problem

    @classmethod
    def fits(cls, model: "ModelSection") -> bool:
        """Where the model has a head."""
        return model.classifies

    def problems(self, given: Given) -> RuleProblem:
        """What is about text doesn't go with a head."""
        recipe = self.recipe
        if recipe.tracking.samples is not None:
            yield "tracking.samples", "a model with model.head writes no text; remove this"
        if asked(recipe, given, "data.supervise") and recipe.data.supervise != "assistant":
            yield (
                "data.supervise",
                "with model.head the answer is what is learned, whatever its tokens; remove this",
            )
        if asked(recipe, given, "data.reasoning"):
            yield (
                "data.reasoning",
                "with model.head the answer is what is learned, and no thought before it; remove this",
            )
        if recipe.data.attention == "leaky":
            yield "data.attention", "with model.head each document has an answer of its own; remove this"
        if recipe.data.loss_weights:
            yield "data.loss_weights", "with model.head the answer is one number or label; remove this"
        if recipe.data.pack_split:
            yield "data.pack_split", "a document that is cut has no place for the head to read; remove this"
        if recipe.train.label_smoothing and self.head.problem != "single_label":
            yield (
                "train.label_smoothing",
                f"only a head of problem single_label has it; this one is {self.head.problem}",
            )
        if asked(recipe, given, "evaluate.max_new_tokens"):
            yield "evaluate.max_new_tokens", "a model with model.head writes no text; remove this"

    def prepare_model(self, model: Any, pad_token_id: int) -> None:
        """transformers reads a row's last token that isn't this one."""
        model.config.pad_token_id = pad_token_id

    def loss(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """The sum of the documents' losses; smoothed in training only."""
        from finetune.models.classify import head_loss

        return head_loss(model, hidden, inputs, self.head.problem, self.recipe.train.label_smoothing)

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """The loss."""
        return ("loss",)

"""What an objective is: all that the rest of the toolkit asks of one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.config import Section
from data_prep.encoding import ANSWERS, RowEncoding
from finetune.recipe.given import Given, RuleProblem

if TYPE_CHECKING:
    import torch

    from data_prep.config import HeadSection
    from data_prep.table.documents import Document
    from finetune.models.loss import LossInputs, MostChunks
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.model import ModelSection


class NoOptions(Section):
    """An objective without keys of its own."""


class Objective:
    """What is learned from rows: their documents, the loss, and what its sum is divided by.

    Shapes: B rows, T tokens, D model width, N documents of a batch.
    """

    kind: ClassVar[str]
    """Its name in the recipe: objective.kind."""
    section: ClassVar[type[Section]] = NoOptions
    """Its other keys in the recipe's objective section."""
    encoding: RowEncoding = ANSWERS
    """How rows become documents."""
    brought_head: ClassVar["HeadSection | None"] = None
    """The head that the objective brings: model.head of a recipe that doesn't name it."""
    writes_text: ClassVar[bool] = True
    """Whether the model predicts tokens, so that it can be asked for answers."""
    smooths_labels: ClassVar[bool] = False
    """Whether its loss knows train.label_smoothing."""
    has_perplexity: ClassVar[bool] = False
    """Whether e to the power of its loss is one."""
    several_labels: bool | None = None
    """Whether a row may have several labels; None where its answer says so."""
    values_per_document: int = 0
    """Numbers that `values` computes of each document before step 1; they are kept with the run."""
    reference: str = "start"
    """Of which model: start, the one that is trained; base, the same without its adapter; else that of an
    adapter, by its folder."""
    step_values: ClassVar[int] = 0
    """Numbers that `step_terms` sums over a complete step before its first loss."""
    logged: tuple[str, ...] = ()
    """Names of what `loss` gives beside the loss; their means are logged as train/NAME and eval/NAME."""

    def __init__(self, recipe: "Recipe"):
        self.recipe = recipe
        self.options: Any = self.section.model_validate(recipe.objective.options)

    @classmethod
    def outcome(cls, model: "ModelSection") -> str:
        """What metrics are about, by the word that a metric's `fits` has: "text", a head's problem, or this
        kind alone."""
        return cls.kind

    @classmethod
    def fits(cls, model: "ModelSection") -> bool:
        """Whether this is the objective of the kind for such a model: one that predicts tokens."""
        return not model.classifies

    def problems(self, given: Given) -> RuleProblem:
        """What of the recipe doesn't fit the objective, as (dotted path, message); `given` is what the user
        wrote."""
        if self.recipe.train.label_smoothing and not self.smooths_labels:
            yield "train.label_smoothing", f"objective {self.kind} has no such loss; remove this key"
        if self.encoding.documents_per_row == 1 and not self.values_per_document:
            return
        data = self.recipe.data
        if data.attention == "leaky":
            yield (
                "data.attention",
                f"objective {self.kind} compares documents, and leaky ones aren't apart; remove this key",
            )
        if data.pack_split:
            yield (
                "data.pack_split",
                f"objective {self.kind} compares complete documents, and this cuts them; remove this key",
            )
        if data.over_length == "split":
            yield (
                "data.over_length",
                f"objective {self.kind} compares complete documents; use drop or truncate_end",
            )
        if self.values_per_document and data.streaming is not None:
            yield (
                "data.streaming",
                f"objective {self.kind} computes numbers of every row before step 1; remove this key",
            )
        capacity, needed = data.pack_length_tokens, self.encoding.documents_per_row * data.max_length_tokens
        if capacity is not None and capacity < needed:
            yield (
                "data.pack_length_tokens",
                f"a row of objective {self.kind} is {self.encoding.documents_per_row} documents of up to "
                f"max_length_tokens each: set at least {needed}, or lower data.max_length_tokens",
            )

    def prepare_model(self, model: Any, pad_token_id: int) -> None:
        """Called with the loaded base, before its adapter is attached. Raises ModelError for one that can't
        be trained."""

    def install(self, model: Any, *, most_chunks: "MostChunks | None" = None) -> None:
        """Let the model's forward return the loss (finetune.models.loss.install_loss)."""
        from finetune.models.loss import install_loss

        install_loss(
            model,
            self.loss,
            neftune_alpha=self.recipe.train.neftune_alpha,
            most_chunks=most_chunks,
            parts={"values": self.values, "step_terms": self.step_terms},
        )

    def loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "torch.Tensor | tuple[torch.Tensor, torch.Tensor]":
        """The sum of a micro-batch's losses, from hidden states (B x T x D): a scalar in at least float32.

        Where something is `logged`, beside it the sums of these numbers and what each is divided by (K x 2),
        without a gradient.
        """
        raise NotImplementedError

    def weight(self, batch: dict[str, Any]) -> "torch.Tensor":
        """What a batch adds to the divisor of its step's loss: here its supervised tokens, each by its
        weight."""
        from finetune.models.batch import loss_weight

        return loss_weight(batch)

    def values(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """values_per_document numbers of each document (N x K), of the `reference` before step 1."""
        raise NotImplementedError

    def step_terms(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """step_values numbers of a micro-batch; each loss of the step gets their sum over the step
        (LossInputs.step_sum)."""
        raise NotImplementedError

    def counterparts(self, documents: "Sequence[Document]") -> "Sequence[Document]":
        """A document for each of these, of which `values` and `step_terms` are computed in a pass without
        gradients; none where step_terms is of the documents themselves."""
        return ()

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """What is measured where the recipe names no metric; `asks`: rows have prompts."""
        return ()

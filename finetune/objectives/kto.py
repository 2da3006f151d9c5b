"""Learning from answers that were judged one by one: KTO."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.feedback import FeedbackEncoding, Mismatched
from finetune.objectives.base import Objective
from finetune.objectives.pairs import Positive, ReferenceOptions, refers_to_base
from finetune.recipe.given import Given, RuleProblem, asked

if TYPE_CHECKING:
    import torch

    from data_prep.table.documents import Document
    from finetune.models.loss import LossInputs
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.model import ModelSection


class KtoOptions(ReferenceOptions):
    """Keys of objective kto."""

    beta: Positive = 0.1
    """How strongly the model is held to the reference: the larger, the closer it stays."""
    good_weight: Positive = 1.0
    """Weight of good answers (lambda_D in the paper, desirable_weight in TRL). The paper wants the weights
    times the numbers of good and bad answers to be in a ratio from 1 to 4/3."""
    bad_weight: Positive = 1.0
    """Weight of bad answers (lambda_U, undesirable_weight)."""


class Kto(Objective):
    """Kahneman-Tversky optimisation: each answer's reward is brought to its side of a baseline, the mean over
    rows.

    Ethayarajh et al. 2024, arXiv:2402.01306. A reward is beta times the log-ratio to the reference.
    The baseline is beta times an estimate of the divergence from it: the mean log-ratio of answers
    that belong to other rows (Mismatched), over the complete step, and at least 0; it has no gradient.
    """

    kind: ClassVar[str] = "kto"
    section = KtoOptions
    encoding = FeedbackEncoding()
    values_per_document = 1
    step_values: ClassVar[int] = 2
    logged = (
        "reward_accuracy", "baseline", "rewards/good", "rewards/bad", "log_probabilities/good",
        "log_probabilities/bad",
    )  # fmt: skip

    def __init__(self, recipe: "Recipe"):
        super().__init__(recipe)
        self.reference = self.options.reference
        self.is_relative_to_base = refers_to_base(recipe, self.reference)

    @classmethod
    def outcome(cls, model: "ModelSection") -> str:
        """Judged answers, of which rewards are measured."""
        return "judged"

    def problems(self, given: Given) -> RuleProblem:
        """All that is learned is what was judged."""
        yield from super().problems(given)
        if self.reference == "none":
            yield "objective.reference", "objective kto needs one: start, base or an adapter"
        recipe = self.recipe
        if recipe.train.global_batch_size == 1:
            yield "train.global_batch_size", "objective kto compares the rows of a step; set at least 2"
        if asked(recipe, given, "data.supervise") and recipe.data.supervise == "all":
            yield "data.supervise", "objective kto learns the answer that was judged; remove this"
        if recipe.data.loss_weights:
            yield "data.loss_weights", "objective kto weighs an answer's tokens alike; remove this"

    def counterparts(self, documents: "Sequence[Document]") -> "Sequence[Document]":
        """Each prompt with another row's answer."""
        return Mismatched(documents, self.recipe.train.seed, self.recipe.data.max_length_tokens)

    def values(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """The log-probability of each answer."""
        from finetune.models.loss import document_cross_entropy

        return -document_cross_entropy(model, hidden, inputs)[:, None]

    def _compared(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Log-probabilities of the model, and of the reference (N each)."""
        assert inputs.values is not None  # noqa: S101 - values_per_document
        found = self.values(model, hidden, inputs)
        return found[:, 0], inputs.values[:, 0].to(found)

    def step_terms(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """The sum of the log-ratios of other rows' answers, and their number."""
        import torch

        log_probabilities, reference = self._compared(model, hidden, inputs)
        ratios = log_probabilities - reference
        return torch.stack([ratios.sum(), ratios.new_full((), len(ratios))])

    def loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The sum over the answers, and what is logged of them."""
        import torch

        from finetune.models.preference import judged_numbers, kto_losses, summed

        assert inputs.step_sum is not None  # noqa: S101 - step_values
        options = self.options
        log_probabilities, reference = self._compared(model, hidden, inputs)
        rewards = options.beta * (log_probabilities - reference)
        # Documents that fill up have no judgement.
        good = torch.zeros_like(rewards) if inputs.targets is None else inputs.targets[:, 0].to(rewards)
        mean = inputs.step_sum[0] / inputs.step_sum[1].clamp(min=1)
        baseline = options.beta * mean.clamp(min=0).to(rewards)
        losses = kto_losses(rewards, good, baseline, (options.good_weight, options.bad_weight))
        numbers = judged_numbers(rewards, log_probabilities, good, baseline)
        return losses.sum(), summed(numbers, self.logged)

    def weight(self, batch: dict[str, Any]) -> "torch.Tensor":
        """Its rows."""
        from finetune.models.batch import row_count

        return row_count(batch)

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """Whether good answers have the higher rewards."""
        return ("reward_auc",)

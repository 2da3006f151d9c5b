"""Objectives that compare two answers by their own probabilities, without a reference: ORPO, SimPO, CPO."""

from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.config import Section
from finetune.objectives.pairs import PairObjective, Positive, Share, Smoothing

if TYPE_CHECKING:
    import torch

    from finetune.models.loss import LossInputs
    from finetune.models.preference import PairScores


class OrpoOptions(Section):
    """Keys of objective orpo."""

    odds_weight: Positive = 0.1
    """Weight of the odds ratio's loss beside the chosen answer's cross-entropy (lambda in the paper; TRL and
    Axolotl call it beta)."""
    learns_prompt: bool = False
    """The cross-entropy is that of the prompt and the chosen answer, as in TRL and Axolotl; the paper's is
    the answer's."""


class Orpo(PairObjective):
    """Odds ratio preference optimisation: the chosen answer's cross-entropy per token, and the ratio of the
    two answers' odds. Hong et al. 2024, arXiv:2403.07691, equations 6 and 7.

    Rewards are log-odds.
    """

    kind: ClassVar[str] = "orpo"
    section: ClassVar[type[Section]] = OrpoOptions
    supervises: ClassVar[float] = 1.0

    def supervised_loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs", scores: "PairScores"
    ) -> "torch.Tensor":
        """Of the answer, or of its prompt too."""
        from finetune.models.preference import with_prompts

        if not self.options.learns_prompt:
            return super().supervised_loss(model, hidden, inputs, scores)
        return with_prompts(model, hidden, inputs, scores)

    def rewards(self, scores: "PairScores") -> "torch.Tensor":
        """The log-odds of an answer's probability per token."""
        from finetune.models.preference import log_odds

        return log_odds(scores.mean_log_probabilities)

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """Of the log of the odds ratio."""
        from finetune.models.preference import preferred

        weight: float = self.options.odds_weight
        return weight * preferred(margins, 0.0)


class SimpoOptions(Section):
    """Keys of objective simpo."""

    beta: Positive = 2.0
    """What log-probabilities per token are multiplied by."""
    margin: Share = 1.0
    """How much higher the chosen answer's reward should be (gamma in the paper)."""
    label_smoothing: Smoothing = 0.0
    """The share of pairs whose labels are taken to be swapped."""
    supervised_weight: Share = 0.0
    """Weight of the chosen answer's cross-entropy per token beside the loss."""


class Simpo(PairObjective):
    """Simple preference optimisation: -log sigmoid(margin - gamma), with rewards per token.

    Meng et al. 2024, arXiv:2405.14734, equation 6.
    """

    kind: ClassVar[str] = "simpo"
    section: ClassVar[type[Section]] = SimpoOptions

    def rewards(self, scores: "PairScores") -> "torch.Tensor":
        """beta times the log-probability per token."""
        beta: float = self.options.beta
        return beta * scores.mean_log_probabilities

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """Of what the margin is above the one that is asked for."""
        from finetune.models.preference import preferred

        return preferred(margins - self.options.margin, self.options.label_smoothing)


class CpoOptions(Section):
    """Keys of objective cpo."""

    beta: Positive = 0.1
    """What log-probabilities are multiplied by."""
    label_smoothing: Smoothing = 0.0
    """The share of pairs whose labels are taken to be swapped."""
    supervised_weight: Share = 1.0
    """Weight of the chosen answer's cross-entropy per token beside the loss."""


class Cpo(PairObjective):
    """Contrastive preference optimisation: DPO's loss with a uniform reference, and the chosen answer's
    cross-entropy. Xu et al. 2024, arXiv:2401.08417, equation 5."""

    kind: ClassVar[str] = "cpo"
    section: ClassVar[type[Section]] = CpoOptions

    def rewards(self, scores: "PairScores") -> "torch.Tensor":
        """beta times the log-probability."""
        beta: float = self.options.beta
        return beta * scores.log_probabilities

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """The negative log-likelihood of the preference."""
        from finetune.models.preference import preferred

        return preferred(margins, self.options.label_smoothing)

"""Objectives that compare how much likelier two answers became than they were to a reference: DPO and its
kin.

An answer's reward is beta times the log-ratio of its probability to the reference's; with length_normalized
it is per token.
"""

from typing import TYPE_CHECKING, ClassVar

from data_prep.config import Section
from finetune.objectives.pairs import PairObjective, Positive, ReferenceOptions, Share, Smoothing

if TYPE_CHECKING:
    import torch

    from finetune.models.preference import PairScores


class RatioOptions(ReferenceOptions):
    """Keys of DPO and its kin."""

    beta: Positive = 0.1
    """How strongly the model is held to the reference: the larger, the closer it stays."""
    length_normalized: bool = False
    """Log-ratios are per token, so that long answers aren't favoured for their length (Lambert et al. 2024,
    Tulu 3, arXiv:2411.15124; of ipo what TRL computes)."""
    supervised_weight: Share = 0.0
    """Weight of the chosen answer's cross-entropy per token beside the loss, which keeps it likely (Pang et
    al. 2024, arXiv:2404.19733)."""


class DpoOptions(RatioOptions):
    """Keys of objective dpo."""

    label_smoothing: Smoothing = 0.0
    """The share of pairs whose labels are taken to be swapped (Mitchell 2023, "A note on DPO with noisy
    preferences")."""


class RobustOptions(RatioOptions):
    """Keys of objective robust."""

    label_smoothing: Smoothing = 0.1
    """The share of pairs whose labels are taken to be swapped."""


class RatioObjective(PairObjective):
    """Rewards are beta times log-ratios."""

    section: ClassVar[type[Section]] = RatioOptions

    def rewards(self, scores: "PairScores") -> "torch.Tensor":
        """beta (log p - log p of the reference), per token where they are normalised by length."""
        ratios = scores.log_ratios
        return self.options.beta * (ratios / scores.tokens if self.options.length_normalized else ratios)


class Dpo(RatioObjective):
    """Direct preference optimisation: -log sigmoid(margin). Rafailov et al. 2023, arXiv:2305.18290."""

    kind: ClassVar[str] = "dpo"
    section: ClassVar[type[Section]] = DpoOptions

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """The negative log-likelihood of the preference."""
        from finetune.models.preference import preferred

        return preferred(margins, self.options.label_smoothing)


class Ipo(RatioObjective):
    """Identity preference optimisation: the squared distance of the margin of log-ratios from 1 / (2 beta).

    Azar et al. 2023, arXiv:2310.12036, equation 17.
    """

    kind: ClassVar[str] = "ipo"

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """By log-ratios, which are rewards without beta."""
        return ((margins - 0.5) / self.options.beta) ** 2


class Hinge(RatioObjective):
    """A hinge loss, max(0, 1 - margin). Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425; relative to a
    reference as in Liu et al. 2023 (RSO), arXiv:2309.06657."""

    kind: ClassVar[str] = "hinge"

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """Nothing is left to learn of a pair from a margin of 1 on."""
        return (1 - margins).relu()


class Robust(RatioObjective):
    """DPO whose expected loss under swapped labels is that of the right ones. Chowdhury et al. 2024,
    arXiv:2403.00409."""

    kind: ClassVar[str] = "robust"
    section: ClassVar[type[Section]] = RobustOptions

    def preference_loss(self, margins: "torch.Tensor") -> "torch.Tensor":
        """The loss of the labels as they are, less what swapped ones are expected to add."""
        from finetune.models.preference import preferred

        swapped = self.options.label_smoothing
        right, wrong = preferred(margins, 0.0), preferred(-margins, 0.0)
        return ((1 - swapped) * right - swapped * wrong) / (1 - 2 * swapped)

"""What the tokens of drawn answers teach a policy: advantages of rewards, and losses of likelihood ratios.

Shapes: G groups (prompts) of n answers, A answers, N their tokens. r = p / q is how much likelier a token is
to the model than it was to the sampler that drew it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from finetune.models.logits import head_of
from finetune.models.loss import LossInputs, position_cross_entropy

Loss = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo"]
Scale = Literal["group", "batch", "none"]

DEVIATION_EPSILON = 1e-4
"""Added to a deviation before it divides, as in TRL."""


def advantages_of(
    rewards: torch.Tensor, scale: Scale, *, leave_one_out: bool = False, deviation: float | None = None
) -> torch.Tensor:
    """How much better each answer's reward (G x n) is than its group's mean (Shao et al. 2024,
    arXiv:2402.03300); with `leave_one_out` than the mean of the others (Kool et al. 2019; Ahmadian et al.
    2024, arXiv:2402.14740).

    Divided by the deviation of the group, or of the batch (`deviation`), that of a sample: n - 1 counts.
    """
    found = rewards - rewards.mean(dim=1, keepdim=True)
    if leave_one_out:
        found = found * (rewards.shape[1] / (rewards.shape[1] - 1))
    if scale == "group":
        return found / (rewards.std(dim=1, keepdim=True) + DEVIATION_EPSILON)
    if scale == "batch":
        assert deviation is not None  # noqa: S101 - of the whole step, which the caller knows
        return found / (deviation + DEVIATION_EPSILON)
    return found


def log_probabilities(
    model: Any, hidden: torch.Tensor, inputs: LossInputs, temperature: float
) -> torch.Tensor:
    """ln of each drawn token's probability at the temperature at which it was drawn, of all tokens (N)."""
    return -position_cross_entropy(
        inputs.at_supervised(hidden),
        inputs.at_supervised(inputs.labels),
        head_of(model),
        inputs.most_chunks,
        hidden[0, :1],
        temperature,
    )


@dataclass(frozen=True)
class PolicyLoss:
    """A loss of drawn tokens, summed. What its sum is divided by is `divisor`, of the complete step."""

    kind: Loss = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    """Ratios are clipped to 1 - clip_low and 1 + clip_high; cispo's to clip_high itself."""
    kl_weight: float = 0.0
    max_new_tokens: int = 1
    """The longest answer, by which dr_grpo divides."""

    @property
    def per_answer(self) -> bool:
        """Whether an answer has one ratio, and not each of its tokens."""
        return self.kind in ("gspo", "rloo")

    @property
    def averages_answers(self) -> bool:
        """Whether each answer counts once, whatever its length: the tokens' loss is their mean."""
        return self.kind in ("grpo", "gspo", "rloo")

    def divisor(self, tokens: torch.Tensor) -> torch.Tensor:
        """What a batch adds to it, by its answers' numbers of tokens (A; 0 for one that isn't learned)."""
        if self.kind in ("dapo", "cispo"):
            return tokens.sum()
        answers = (tokens > 0).sum()
        return answers * self.max_new_tokens if self.kind == "dr_grpo" else answers

    def __call__(
        self,
        found: torch.Tensor,
        sampler: torch.Tensor,
        advantages: torch.Tensor,
        reference: torch.Tensor,
        owners: torch.Tensor,
        answers: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum, and what is logged of each token (N): of log-probabilities of the model, the sampler and
        the reference (N each), and the advantages of the answers, at each of their tokens (N); `owners` (N)
        are the tokens' answers, of which there are so many.

        grpo, dapo, dr_grpo, gspo: -min(r A, clip(r) A) (Shao et al. 2024, arXiv:2402.03300; Yu et al. 2025,
        arXiv:2503.14476; Liu et al. 2025, arXiv:2503.20783); of gspo r is exp of the mean of an answer's
        log-ratios (Zheng et al. 2025, arXiv:2507.18071), of rloo that of their sum (Ahmadian et al. 2024,
        arXiv:2402.14740). cispo: -stopgrad(min(r, clip_high)) A log p (MiniMax 2025, arXiv:2506.13585).
        The divergence from the reference is estimated at each token by exp(d) - d - 1, with d its log-ratio
        to the model (Schulman 2020, "Approximating KL divergence", k3).
        """
        counts = found.new_zeros(answers).index_add(0, owners, torch.ones_like(found))
        log_ratio = found - sampler
        if self.per_answer:
            sums = found.new_zeros(answers).index_add(0, owners, log_ratio)
            whole = sums / counts.clamp(min=1) if self.kind == "gspo" else sums
            ratio = whole[owners].exp()
        else:
            ratio = log_ratio.exp()
        if self.kind == "cispo":
            outside = ratio > self.clip_high
            losses = -ratio.detach().clamp(max=self.clip_high) * advantages * found
        else:
            clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
            losses = -torch.minimum(ratio * advantages, clipped * advantages)
            outside = ((ratio < 1 - self.clip_low) & (advantages < 0)) | (
                (ratio > 1 + self.clip_high) & (advantages > 0)
            )
        numbers = {"clipped": outside.to(found), "log_ratio": log_ratio.abs(), "entropy": -found}
        if self.kl_weight:
            apart = reference - found
            divergence = apart.exp() - apart - 1
            losses = losses + self.kl_weight * divergence
            numbers["kl"] = divergence
        if self.averages_answers:
            losses = losses / counts[owners]
        return losses.sum(), numbers

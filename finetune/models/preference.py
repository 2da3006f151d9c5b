"""Log-probabilities of the two answers of a pair, and what objectives that compare them compute from those.

Shapes: B rows, T tokens, D model width, P pairs. An answer's log-probability is the sum over its supervised
tokens; logits are made chunk by chunk and never for all positions (finetune.models.loss).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional

from finetune.models.logits import head_of
from finetune.models.loss import IGNORE_INDEX, LossInputs, document_cross_entropy, position_cross_entropy


@dataclass(frozen=True)
class PairScores:
    """What the model, and the reference where there is one, say of pairs: the chosen answer, then the
    rejected one."""

    log_probabilities: torch.Tensor
    """Of each answer given its prompt, in nats (P x 2)."""
    tokens: torch.Tensor
    """Supervised tokens of each answer, at least 1 (P x 2)."""
    reference: torch.Tensor | None = None
    """The reference's log-probabilities (P x 2)."""

    @property
    def log_ratios(self) -> torch.Tensor:
        """How much likelier an answer is than it was to the reference (P x 2); without one, its
        log-probability."""
        return self.log_probabilities if self.reference is None else self.log_probabilities - self.reference

    @property
    def mean_log_probabilities(self) -> torch.Tensor:
        """Per token (P x 2)."""
        return self.log_probabilities / self.tokens


def pair_scores(
    model: Any, hidden: torch.Tensor, inputs: LossInputs, *, has_reference: bool = False
) -> PairScores:
    """Of hidden states (B x T x D) of documents that are pairs, chosen and rejected in turn, beside the
    reference's log-probabilities (inputs.values, N x 1) where there is one."""
    log_probabilities = -document_cross_entropy(model, hidden, inputs)
    tokens = inputs.sums(log_probabilities.new_ones(len(inputs.supervised_positions))).clamp(min=1)
    reference = cast(torch.Tensor, inputs.values).to(log_probabilities) if has_reference else None
    return PairScores(
        log_probabilities.reshape(-1, 2),
        tokens.reshape(-1, 2),
        None if reference is None else reference.reshape(-1, 2),
    )


def with_prompts(model: Any, hidden: torch.Tensor, inputs: LossInputs, scores: PairScores) -> torch.Tensor:
    """The cross-entropy per token of each chosen answer together with its prompt (P), all but whose first
    token is predicted.

    The chosen document of a pair is whole, also where the rejected one goes on from its prompt.
    """
    prompts = prompt_positions(inputs) if inputs.prompts is None else inputs.prompts
    following = inputs.tokens.roll(-1, dims=1).flatten()[prompts]
    states = hidden.flatten(0, 1).index_select(0, prompts)
    losses = position_cross_entropy(states, following, head_of(model), inputs.most_chunks, hidden[0, :1])
    sums, counts = (inputs.sums(numbers, prompts)[::2] for numbers in (losses, torch.ones_like(losses)))
    answers, tokens = -scores.log_probabilities[:, 0], scores.tokens[:, 0]
    return (sums + answers) / (counts + tokens)


def prompt_positions(inputs: LossInputs) -> torch.Tensor:
    """Where a token of a chosen document's prompt is predicted, counted through all rows (N)."""
    learned, owners = inputs.labels.ne(IGNORE_INDEX), inputs.owners
    # What is learned before a position, in its document: nothing in the prompt.
    before = learned.flatten().cumsum(0)
    at_start = before.new_full((inputs.documents,), len(before)).scatter_reduce(
        0, owners.flatten(), before - learned.flatten().long(), "amin"
    )
    prompt = before.reshape(owners.shape).eq(at_start[owners]) & owners.remainder(2).eq(0)
    prompt &= inputs.sums(torch.ones_like(inputs.supervised_positions))[owners] > 0  # what fills up has none
    return prompt.flatten().nonzero().flatten()


def preferred(margins: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """-log of the probability that the chosen answer is the better one, by Bradley and Terry's model, for
    margins (P) between the two rewards.

    With `label_smoothing` the labels of a pair are taken to be swapped with that probability (Mitchell 2023,
    "A note on DPO with noisy preferences").
    """
    right, swapped = -functional.logsigmoid(margins), -functional.logsigmoid(-margins)
    return (1 - label_smoothing) * right + label_smoothing * swapped


def log_odds(log_probabilities: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log p, which is below 0."""
    below = log_probabilities.clamp(max=-torch.finfo(log_probabilities.dtype).tiny)
    return below - torch.log(-torch.expm1(below))


def pair_numbers(scores: PairScores, rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a log says of pairs and their rewards (P x 2), as a number per pair (P)."""
    found = reward_numbers(rewards)
    for name, column in (("log_probabilities", scores.log_probabilities), ("log_ratios", scores.log_ratios)):
        found |= {f"{name}/chosen": column[:, 0], f"{name}/rejected": column[:, 1]}
    return found


def reward_numbers(rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same of the rewards (P x 2) alone."""
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "reward_accuracy": wins(margins),
        "reward_margin": margins,
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
    }


def kto_losses(
    rewards: torch.Tensor, good: torch.Tensor, baseline: torch.Tensor, weights: tuple[float, float]
) -> torch.Tensor:
    """The loss of each judged answer (N): how far its reward (N) is from being on its side of the baseline (a
    scalar), times the weight of good (N, 1 or 0) or bad answers.

    Ethayarajh et al. 2024, arXiv:2402.01306, equation 8.
    """
    side = torch.where(good > 0, rewards - baseline, baseline - rewards)
    factor = torch.where(good > 0, side.new_full((), weights[0]), side.new_full((), weights[1]))
    return factor * torch.sigmoid(-side)


def judged_numbers(
    rewards: torch.Tensor, log_probabilities: torch.Tensor, good: torch.Tensor, baseline: torch.Tensor
) -> "dict[str, Numbers]":
    """What a log says of judged answers (N each), good and bad ones apart."""
    found: dict[str, Numbers] = {
        "reward_accuracy": wins(torch.where(good > 0, rewards - baseline, baseline - rewards)),
        "baseline": baseline.reshape(1),
    }
    for name, those in (("good", good > 0), ("bad", good == 0)):
        found |= {
            f"rewards/{name}": (rewards, those),
            f"log_probabilities/{name}": (log_probabilities, those),
        }
    return found


Numbers = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Numbers that are logged; or numbers, and which of them count: how many a GPU would have to be asked."""


def summed(numbers: Mapping[str, Numbers], names: Sequence[str]) -> torch.Tensor:
    """The sums of numbers that are logged, and how many they are (K x 2), in the order of the names."""
    rows = []
    for found in (numbers[name] for name in names):
        values, counted = found if isinstance(found, tuple) else (found, torch.ones_like(found))
        values = torch.where(counted.bool(), values.detach(), 0.0)
        rows.append(torch.stack([values.sum(), counted.to(values).sum()]))
    return torch.stack(rows)


def wins(margins: torch.Tensor) -> torch.Tensor:
    """1 where the chosen answer has the higher reward, one half for a tie, else 0 (P)."""
    return (margins > 0).to(margins) + 0.5 * (margins == 0).to(margins)

"""Answers that were drawn to a step's prompts, with what they are worth.

Shapes: P prompts, G answers to each, K rewards.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from finetune.generation.sampler import Sample
from finetune.runs.tracking.base import GeneratedSample
from finetune.scoring.measured import Prediction, Question

SAME = 1e-8
"""Rewards of a group that are nearer than this are the same: rounding."""


@dataclass
class Scored:
    """Groups of answers, each to its question."""

    questions: list[Question]
    samples: list[list[Sample]]
    answers: list[Prediction]
    """The samples as texts, one group after the other (P G)."""
    rewards: list[list[float]]
    """Of each answer (P G x K)."""
    weights: torch.Tensor
    """Of the rewards in an answer's total (K)."""
    size: int
    """G, also where there is no prompt."""

    @property
    def values(self) -> torch.Tensor:
        """The rewards, each by its weight (P x G x K, float64)."""
        found = torch.tensor(self.rewards, dtype=torch.float64).reshape(len(self.answers), len(self.weights))
        return (found * self.weights).unflatten(0, (len(self.samples), self.size))

    @property
    def totals(self) -> torch.Tensor:
        """What the answers are worth (P x G)."""
        return self.values.sum(dim=2)

    @property
    def has_signal(self) -> torch.Tensor:
        """Whether the answers of a group differ in what they are worth (P)."""
        totals = self.totals
        return totals.amax(dim=1) - totals.amin(dim=1) > SAME

    def put(self, places: Sequence[int], others: "Scored") -> None:
        """Take other groups in place of those at these places."""
        for own, place in enumerate(places):
            here, there = (slice(one * self.size, (one + 1) * self.size) for one in (place, own))
            self.samples[place] = others.samples[own]
            self.answers[here] = others.answers[there]
            self.rewards[here] = others.rewards[there]

    def shown(self, names: Iterable[str]) -> list[GeneratedSample]:
        """The first group, for a person to see."""
        return [
            GeneratedSample(answer.question.text, answer.text, dict(zip(names, own, strict=True)))
            for answer, own in zip(self.answers[: self.size], self.rewards, strict=False)
        ]

"""Answers that the model in training draws before a step, and what is counted of them.

What is drawn depends on the recipe's seed, the step, the prompt, how often the step asked it before, and the
number of the answer alone, so a resumed run draws what it would have drawn. Each process answers its own
prompts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerFast

from finetune.engines.sharded import evaluable
from finetune.generation.sampler import Sample, sample
from finetune.models.kernels.noise import seed_of
from finetune.objectives.drawing import DrawingOptions
from finetune.runs.tracking.base import GeneratedSample
from finetune.scoring.measured import Question
from finetune.training.prompts import PromptFeed

if TYPE_CHECKING:
    from finetune.training.trainer import ExactTrainer


class Drawing:
    """What a step's rows become, by the model as it is."""

    names: tuple[str, ...] = ()
    """What is counted, and logged."""

    def __init__(self, trainer: "ExactTrainer", tokenizer: PreTrainedTokenizerFast, options: DrawingOptions):
        assert isinstance(trainer.feed, PromptFeed)  # noqa: S101 - build makes it for such an objective
        self.trainer, self.feed = trainer, trainer.feed
        self.tokenizer, self.how = tokenizer, options
        self.first_prompt = list[GeneratedSample]()
        """The answers to the first of the prompts that were answered last, with their rewards."""
        self.sums = self._nothing()

    def answered(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of a step, of the rows of each (PromptFeed)."""
        raise NotImplementedError

    def samples(
        self, questions: Sequence[Question], count: int, *moment: object, asked_before: Sequence[int] = ()
    ) -> list[list[Sample]]:
        """So many answers to each question, drawn from the seed of a moment."""
        how = self.how
        with evaluable(self.trainer) as model:
            return sample(
                model,
                self.tokenizer,
                [question.prompt_ids for question in questions],
                count=count,
                max_new_tokens=how.max_new_tokens,
                batch_size=how.answers_at_a_time,
                temperature=how.temperature,
                top_p=how.top_p,
                top_k=how.top_k,
                min_p=how.min_p,
                seed=seed_of(self.trainer.args.seed, *moment),
                asked_before=asked_before,
            )

    def means(self) -> dict[str, float]:
        """The means of what was counted over all processes since the last call. All processes must ask."""
        total, self.sums = self.trainer.reduced(self.sums), self._nothing()
        return {
            name: value / count
            for name, (value, count) in zip(self.names, total.tolist(), strict=True)
            if count
        }

    def _nothing(self) -> torch.Tensor:
        return torch.zeros(len(self.names), 2, dtype=torch.float64)

    def evaluation_means(self) -> tuple[float, dict[str, float]] | None:
        """The evaluation loss and what is logged beside it, where it is of drawn answers too; None where it
        is that of the rows."""
        return None

    def verdict(self) -> str | None:
        """What is to be said at the end; None for nothing."""
        return None

    def save(self, checkpoint: Path, step: int) -> None:
        """Keep what a later step needs of this one's answers."""

    def load(self, checkpoint: Path, step: int) -> None:
        """Take it up again. Raises CheckpointError where it isn't there."""

"""Rows whose answers the student draws itself, for its teacher to judge: generalised knowledge distillation
(Agarwal et al. 2023, arXiv:2306.13649)."""

from collections.abc import Sequence
from typing import Any

import torch

from data_prep.table.documents import Document
from data_prep.tokenizers.tokens import text_of
from finetune.generation.sampler import Sample
from finetune.runs.tracking.base import GeneratedSample
from finetune.scoring.measured import Question
from finetune.training.batches import collate
from finetune.training.drawing import Drawing


class OwnAnswers(Drawing):
    """A step's rows, some of them with the student's answer in place of their own."""

    names = ("on_policy/share", "on_policy/answer_tokens", "on_policy/truncated")

    def answered(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of a step, of the rows of each."""
        step = int(asked[0]["step"])
        rows = [pair for one in asked for pair in zip(one["rows"], one["asked_before"], strict=True)]
        questions = [self.feed.questions[row] for row, before in rows if before is not None]
        before = [count for _, count in rows if count is not None]
        samples = [own for (own,) in self.samples(questions, 1, step, asked_before=before)]
        self._count(len(rows), questions, samples)
        drawn = iter([_learned(*pair) for pair in zip(questions, samples, strict=True)])
        batches = []
        for one in asked:
            documents = [
                self.feed.table[row] if count is None else next(drawn)
                for row, count in zip(one["rows"], one["asked_before"], strict=True)
            ]
            batches.append(collate(documents or self.feed.fillers, self.feed.batching, step=step))
        return batches

    def _count(self, rows: int, questions: Sequence[Question], samples: Sequence[Sample]) -> None:
        self.first_prompt = [
            GeneratedSample(question.text, text_of(own.ids, self.tokenizer), {})
            for question, own in zip(questions[:1], samples, strict=False)
        ]
        count = len(samples)
        self.sums += torch.tensor([
            [count, rows],
            [sum(len(own.ids) for own in samples), count],
            [sum(own.cut is not None for own in samples), count],
        ]).double()  # fmt: skip


def _learned(question: Question, answer: Sample) -> Document:
    """A prompt with the answer that was drawn, whose tokens are learned."""
    ids = [*question.prompt_ids, *answer.ids]
    return Document(ids, ((len(question.prompt_ids), len(ids), 1.0),), f"{question.place}, own answer")

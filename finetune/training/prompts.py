"""The prompts that a model is to answer while it trains, as a feed of steps."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_prep.epoch.packing import PackedPiece
from data_prep.preparation import PreparedData
from data_prep.table.documents import Document
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import questions_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.objective import ON_POLICY
from finetune.scoring.measured import Question
from finetune.training.batches import TableFeed

ASKED = 0x61736B
"""Separates the draws of the rows that are asked from others with the same seed."""


def prompts_of(
    recipe: Recipe, data: PreparedData, tokenizer: Any, *, positions: int
) -> tuple[list[Question], list[Question]]:
    """What the rows to train on ask, and, where their answers are rewarded, those to evaluate on. Raises
    FinetuneError for a row without a prompt, and for one that leaves no room for the longest answer in so
    many positions."""
    where = ".".join(ON_POLICY) if recipe.objective.teaches else "objective"
    longest = int(recipe.objective.drawing["max_new_tokens"])
    sides = [data.training_rows()]
    if not recipe.objective.teaches:
        sides.append(data.evaluation_rows[: recipe.evaluate.max_rows])
    asked = []
    for rows in sides:
        found = questions_of(rows, tokenizer, recipe.data, merged=False, alone=not recipe.objective.teaches)
        if len(found) < len(rows):
            asking = {question.place for question in found}
            place = next(place for place, _ in rows if place not in asking)
            what = where if recipe.objective.teaches else f"objective {recipe.objective.kind}"
            raise FinetuneError(f"{place} asks nothing: {what} needs rows with prompts.")
        for question in found:
            if len(question.prompt_ids) + longest > positions:
                raise FinetuneError(
                    f"{question.place}: its prompt has {len(question.prompt_ids):,} tokens, and "
                    f"{where}.max_new_tokens is {longest:,}: together more than the base's {positions:,} "
                    f"positions. Lower {where}.max_new_tokens, or leave the row out."
                )
        asked.append(found)
    return asked[0], asked[-1] if len(asked) > 1 else []


class PromptFeed(TableFeed):
    """Which rows a micro-batch has: their numbers, how often the step asked their prompt before (None for a
    row that isn't asked: its own answer is learned), and the step. What is learned of them is made when the
    step begins (finetune.training.drawing), by the model of that moment."""

    def __init__(
        self,
        *arguments: Any,
        questions: Sequence[Question],
        longest_answer: int,
        fraction: float = 1.0,
        seed: int = 0,
        **options: Any,
    ):
        """`questions` are the table's rows; a micro-batch has `documents_per_row` answers to each. A
        `fraction` of each global batch's rows is asked, to within one row, and over all steps in the mean;
        which, is drawn from `seed` and the step."""
        super().__init__(*arguments, **options)
        self.questions, self.longest_answer = questions, longest_answer
        self.fraction, self.seed = fraction, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, packs in enumerate(self.global_batches(), start=self._first_step + 1):
            for mine in self.shares_of(self._numbered(packs, step)):
                asked = [one for pack in mine for one in pack]
                yield {
                    "rows": [row for row, _ in asked],
                    "asked_before": [before for _, before in asked],
                    "step": step,
                }

    def _numbered(
        self, packs: Sequence[Sequence[PackedPiece]], step: int
    ) -> list[list[tuple[int, int | None]]]:
        """Of each pack the rows, and how often the complete step asked the prompt of each before: whatever
        process asks it, its answers are drawn anew."""
        asks = iter(self._asks(sum(map(len, packs)), step))
        seen = Counter[tuple[int, ...]]()
        found = []
        for pack in packs:
            found.append(own := list[tuple[int, int | None]]())
            for row, _, _ in pack:
                prompt = self.questions[row].prompt_ids
                if next(asks):
                    own.append((row, seen[prompt]))
                    seen[prompt] += 1
                else:
                    own.append((row, None))
        return found

    def _asks(self, rows: int, step: int) -> list[bool]:
        """Which of a step's rows are asked."""
        if self.fraction == 1:
            return [True] * rows
        draw = np.random.default_rng([self.seed, ASKED, step])
        count = int(self.fraction * rows + draw.random())
        return (draw.permutation(rows) < count).tolist()

    def heaviest(self) -> list[list[Document]]:
        """The longest prompts, each with its answers, all of the greatest length."""
        size, answers = self.batching.micro_batch_size, self.batching.documents_per_row
        longest = sorted(self.questions, key=lambda question: -len(question.prompt_ids))[:size]
        documents = []
        for question in longest:
            prompt = list(question.prompt_ids)
            whole = prompt + prompt[-1:] * self.longest_answer
            spans = ((len(prompt), len(whole), 1.0),)
            documents += [Document(whole, spans, question.place)] * answers
        return [documents] if self.fraction == 1 else [documents, *super().heaviest()]

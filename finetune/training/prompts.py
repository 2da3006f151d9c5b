"""The prompts that a model is to answer while it trains, as a feed of steps."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.epoch.packing import PackedPiece
from data_prep.preparation import PreparedData
from data_prep.table.documents import Document
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import questions_of
from finetune.recipe.schema import Recipe
from finetune.scoring.measured import Question
from finetune.training.batches import TableFeed


def prompts_of(
    recipe: Recipe, data: PreparedData, tokenizer: Any, *, positions: int
) -> tuple[list[Question], list[Question]]:
    """What the rows to train on, and those to evaluate on, ask. Raises FinetuneError for a row without a
    prompt, and for one that leaves no room for the longest answer in so many positions."""
    longest = recipe.objective.options["max_new_tokens"]
    sides = []
    for rows in (data.training_rows(), data.evaluation_rows[: recipe.evaluate.max_rows]):
        found = questions_of(rows, tokenizer, recipe.data, merged=False)
        if len(found) < len(rows):
            asking = {question.place for question in found}
            place = next(place for place, _ in rows if place not in asking)
            raise FinetuneError(
                f"{place} asks nothing: objective {recipe.objective.kind} needs rows with prompts."
            )
        for question in found:
            if len(question.prompt_ids) + longest > positions:
                raise FinetuneError(
                    f"{question.place}: its prompt has {len(question.prompt_ids):,} tokens, and "
                    f"objective.max_new_tokens is {longest:,}: together more than the base's {positions:,} "
                    "positions. Lower objective.max_new_tokens, or leave the row out."
                )
        sides.append(found)
    return sides[0], sides[1]


class PromptFeed(TableFeed):
    """Which rows are asked in each micro-batch: their numbers, how often the step asked their prompt
    before, and the step. What is learned of them is made when the step begins (finetune.training.rollouts),
    by the model of that moment."""

    def __init__(self, *arguments: Any, questions: Sequence[Question], longest_answer: int, **options: Any):
        """`questions` are the table's rows; a micro-batch has `documents_per_row` answers to each."""
        super().__init__(*arguments, **options)
        self.questions, self.longest_answer = questions, longest_answer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, packs in enumerate(self.global_batches(), start=self._first_step + 1):
            for mine in self.shares_of(self._numbered(packs)):
                asked = [one for pack in mine for one in pack]
                yield {
                    "rows": [row for row, _ in asked],
                    "asked_before": [before for _, before in asked],
                    "step": step,
                }

    def _numbered(self, packs: Sequence[Sequence[PackedPiece]]) -> list[list[tuple[int, int]]]:
        """Of each pack the rows, and how often the complete step asked the prompt of each before: whatever
        process asks it, its answers are drawn anew."""
        seen = Counter[tuple[int, ...]]()
        found = []
        for pack in packs:
            found.append(own := list[tuple[int, int]]())
            for row, _, _ in pack:
                prompt = self.questions[row].prompt_ids
                own.append((row, seen[prompt]))
                seen[prompt] += 1
        return found

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
        return [documents]

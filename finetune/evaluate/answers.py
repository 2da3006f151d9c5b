"""The questions of evaluation rows, and a model's answers to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.config import Finding
from data_prep.masks import Placed, tokenize
from data_prep.messages import Conversation, Example, last_answer
from data_prep.render import prompt_and_reference
from finetune.errors import FinetuneError
from finetune.evaluate.generation import generate, text_of
from finetune.recipe.schema.evaluate import EvaluateSection

Progress = Callable[[int, int], None]
"""Told how many answers are there, and of how many."""


@dataclass(frozen=True)
class Question:
    """What rows with the same prompt ask: the answers of all of them count as right."""

    place: str
    """Where its first row stands."""
    example: Example
    prompt_ids: tuple[int, ...]
    references: tuple[str, ...]
    """The answers of the rows, as they are written there."""
    tests: str = ""
    """A program that the code of a right answer comes through."""
    readings: tuple[str, ...] = ()
    """What the tokens of each reference read back as, which is how a model writes it; empty where no token is generated."""

    @property
    def text(self) -> str:
        """What the user wrote last."""
        example = self.example
        return example.messages[-2].content if isinstance(example, Conversation) else example.prompt

    @property
    def expected(self) -> tuple[str, ...]:
        """What an answer is compared with."""
        return self.readings or self.references

    @property
    def changed(self) -> tuple[str, str] | None:
        """The first reference that reads back otherwise, and as what; blanks around them aside."""
        pairs = zip(self.references, self.expected, strict=True)
        return next((pair for pair in pairs if pair[0].strip() != pair[1].strip()), None)


@dataclass(frozen=True)
class Answer:
    """A question, and what a model says to it."""

    question: Question
    texts: tuple[str, ...]
    """Several where they are drawn, for pass@k; of a classification head, what its outputs say."""
    likelihoods: tuple[float, ...] = field(default=(), repr=False)
    """log p(label | prompt) in nats, for each label, where that was measured."""
    cuts: tuple[str | None, ...] = ()
    """Where each text was cut before the end of its turn; empty where nothing was generated."""

    @property
    def text(self) -> str:
        """The answer."""
        return self.texts[0]


def questions_of(rows: Sequence[Placed], tokenizer: PreTrainedTokenizerFast, *, merged: bool = True) -> list[Question]:
    """The questions of rows that have a prompt, in their order; rows that ask the same are one where they are `merged`.

    Raises FinetuneError for a row without an answer to compare with.
    """
    rows = [(place, row) for place, row in rows if isinstance(row, Conversation) or row.prompt]  # a plain text asks nothing
    asked = [prompt_and_reference(row, tokenizer) for _, row in rows]
    for (place, _), (_, reference) in zip(rows, asked, strict=True):
        if not reference.strip():
            raise FinetuneError(f"{place} has no answer to compare with: give it one, or take the row out of the evaluation.")
    answered, prompts = list[Placed](), list[list[int]]()
    for (place, row), (ids, _) in zip(rows, asked, strict=True):
        answered += [(place, row), *((place, with_answer(row, other)) for other in _others(row))]
        prompts += [ids] * (1 + len(_others(row)))
    readings = iter(read_back(answered, prompts, tokenizer))
    found: dict[tuple[int, ...] | str, Question] = {}
    for (place, row), (ids, reference) in zip(rows, asked, strict=True):
        references = (reference, *_others(row))
        mine = Question(place, row, tuple(ids), references, _tests(row), tuple(islice(readings, len(references))))
        key = tuple(ids) if merged else place
        found[key] = _together(found[key], mine) if key in found else mine
    return list(found.values())


def answered_rows(rows: Sequence[Placed]) -> list[Question]:
    """The rows of a classification head, which generates nothing, as questions."""
    return [Question(place, row, (), (last_answer(row),)) for place, row in rows]


def _together(first: Question, second: Question) -> Question:
    """One question with the references of both, each once."""
    pairs = dict(zip(first.references + second.references, first.readings + second.readings, strict=True))
    return replace(first, references=tuple(pairs), readings=tuple(pairs.values()), tests=first.tests or second.tests)


def _others(row: Example) -> tuple[str, ...]:
    return row.references if isinstance(row, Conversation) else ()


def _tests(row: Example) -> str:
    return row.tests if isinstance(row, Conversation) else ""


def with_answer(example: Example, answer: str) -> Example:
    """The example with another last answer; of a plain text with the blanks that stand around it."""
    if isinstance(example, Conversation):
        last = replace(example.messages[-1], content=answer, tool_calls=(), weight=None)
        return replace(example, messages=(*example.messages[:-1], last))
    before, after = example.completion.split(example.completion.strip() or example.completion, maxsplit=1)
    return replace(example, completion=f"{before}{answer}{after}")


def read_back(answered: Sequence[Placed], prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Each row's last answer as its learned tokens read back, behind a prompt of these ids: as `generate` gives it.

    A text doesn't always survive its tokens: a new token swallows a blank, a normaliser changes letters.
    """
    documents = tokenize([(place, _learned(row)) for place, row in answered], tokenizer, "last", on_finding=passed_over)
    texts = []
    for document, prompt in zip(documents, prompts, strict=True):
        if not document.spans:
            texts.append("")
            continue
        first, end, _ = document.spans[-1]
        if document.token_ids[: len(prompt)] == list(prompt):
            first = len(prompt)
        texts.append(text_of(document.token_ids[first:end], tokenizer))
    return texts


def _learned(row: Example) -> Example:
    """The row, its last answer learned whatever its weight."""
    if not isinstance(row, Conversation):
        return row
    return replace(row, messages=(*row.messages[:-1], replace(row.messages[-1], weight=None)))


def passed_over(finding: Finding, place: str, message: str) -> None:
    """What is wrong with a row was refused, or allowed, when the data were prepared."""


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    section: EvaluateSection,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Answer]:
    """The likeliest answer to each question; with several samples so many that are drawn, from `seed`."""
    count = section.samples_per_prompt
    made = generate(
        model,
        tokenizer,
        [question.prompt_ids for question in questions for _ in range(count)],
        max_new_tokens=section.max_new_tokens,
        batch_size=section.batch_size,
        temperature=section.temperature if count > 1 else 0.0,
        seed=seed,
        progress=progress,
    )
    answers = []
    for index, question in enumerate(questions):
        mine = made[index * count : (index + 1) * count]
        answers.append(Answer(question, tuple(one.text for one in mine), cuts=tuple(one.cut for one in mine)))
    return answers

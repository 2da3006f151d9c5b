"""The questions of evaluation rows, and a model's answers to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.chat.rendering import NOTHING, prompt_and_reference
from data_prep.chat.sized import SizedTokenization
from data_prep.chat.tokenization import Placed
from data_prep.config import DataSection, Finding, Note, Reasoning, Supervise
from data_prep.encoding import ANSWERS
from data_prep.messages import Conversation, Example, last_answer
from data_prep.tokenizers.tokens import text_of
from finetune.errors import FinetuneError
from finetune.generation.generate import generate
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.scoring.measured import Prediction, Question

OnProgress = Callable[[int, int], None]
"""Told how many answers are there, and of how many."""


def questions_of(
    rows: Sequence[Placed],
    tokenizer: PreTrainedTokenizerFast,
    data: DataSection | None = None,
    *,
    merged: bool = True,
    alone: bool = False,
) -> list[Question]:
    """The questions of rows that have a prompt, in their order; rows that ask the same are one where they are
    `merged`.

    `data` says how the rows become tokens. Raises FinetuneError for a row without an answer to compare with,
    which with `alone` prompts alone needn't have.
    """
    rows = [
        (place, row) for place, row in rows if isinstance(row, Conversation) or row.prompt
    ]  # a plain text asks nothing
    as_text = data is not None and data.special_tokens_in_text == "text"
    asked = [prompt_and_reference(row, tokenizer, special_as_text=as_text) for _, row in rows]
    for (place, row), (_, reference) in zip(rows, asked, strict=True):
        if not reference.strip() and not (alone and not row.answered):
            raise FinetuneError(
                f"{place} has no answer to compare with: give it one, or take the row out of the evaluation."
            )
    answered = list[Placed]()
    for place, row in rows:
        if row.answered:
            answered += [(place, row), *((place, with_answer(row, other)) for other in _others(row))]
    readings = iter(read_back(answered, tokenizer, data))
    found: dict[tuple[int, ...] | str, Question] = {}
    for (place, row), (ids, reference) in zip(rows, asked, strict=True):
        references = (reference, *_others(row)) if row.answered else ()
        mine = Question(
            place, row, tuple(ids), references, _tests(row), tuple(islice(readings, len(references)))
        )
        key = tuple(ids) if merged else place
        found[key] = _together(found[key], mine) if key in found else mine
    return list(found.values())


def answered_rows(rows: Sequence[Placed]) -> list[Question]:
    """The rows of a classification head, which generates nothing, as questions."""
    return [Question(place, row, (), (last_answer(row),)) for place, row in rows]


def _together(first: Question, second: Question) -> Question:
    """One question with the references of both, each once."""
    pairs = dict(zip(first.references + second.references, first.readings + second.readings, strict=True))
    return replace(
        first, references=tuple(pairs), readings=tuple(pairs.values()), tests=first.tests or second.tests
    )


def _others(row: Example) -> tuple[str, ...]:
    return row.references if isinstance(row, Conversation) else ()


def _tests(row: Example) -> str:
    return row.tests if isinstance(row, Conversation) else ""


def with_answer(example: Example, answer: str) -> Example:
    """The example with another last answer; of a plain text with the blanks that stand around it."""
    if isinstance(example, Conversation):
        last = replace(example.messages[-1], content=answer, tool_calls=(), weight=None, parts=())
        return replace(example, messages=(*example.messages[:-1], last), answered=True)
    if not example.answered:
        return replace(example, completion=answer, answered=True)
    before, after = example.completion.split(example.completion.strip() or example.completion, maxsplit=1)
    return replace(example, completion=f"{before}{answer}{after}")


def read_back(
    answered: Sequence[Placed], tokenizer: PreTrainedTokenizerFast, data: DataSection | None = None
) -> list[str]:
    """Each row's last answer as its learned tokens read back: as `generate` gives it.

    A text doesn't always survive its tokens: a new token swallows a blank, a normaliser changes letters.
    """
    learned = [(place, _learned(row)) for place, row in answered]
    documents = (document for document, _ in tokenization_of(data, tokenizer, "last").run(learned))
    spans = (
        (document.token_ids, *document.spans[-1]) if document.spans else ([], 0, 0, 0.0)
        for document in documents
    )
    return [text_of(ids[first:end], tokenizer) for ids, first, end, _ in spans]


def tokenization_of(
    data: DataSection | None,
    tokenizer: PreTrainedTokenizerFast,
    supervise: Supervise,
    loss_weights: Mapping[str, float] = NOTHING,
) -> SizedTokenization:
    """How rows that were prepared become tokens once more: as the recipe's data section says."""
    reasoning: Reasoning = "learn" if data is None else data.reasoning
    as_text = data is not None and data.special_tokens_in_text == "text"
    return SizedTokenization(
        tokenizer, supervise, passed_over, ANSWERS, reasoning, as_text, loss_weights=loss_weights
    )


def _learned(row: Example) -> Example:
    """The row, its last answer learned whatever its weight."""
    if not isinstance(row, Conversation):
        return row
    return replace(row, messages=(*row.messages[:-1], replace(row.messages[-1], weight=None, parts=())))


def passed_over(finding: Finding | Note, place: str, message: str) -> None:
    """What is wrong with a row was refused, or allowed, when the data were prepared."""


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    section: EvaluateSection,
    *,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> list[Prediction]:
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
        answers.append(
            Prediction(question, tuple(one.text for one in mine), cuts=tuple(one.cut for one in mine))
        )
    return answers

"""The questions of evaluation rows, and a model's answers to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.masks import Placed
from data_prep.messages import Conversation, Example
from data_prep.render import prompt_and_reference
from finetune.errors import FinetuneError
from finetune.evaluate.generation import generate
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
    tests: str = ""
    """A program that the code of a right answer comes through."""

    @property
    def text(self) -> str:
        """What the user wrote last."""
        example = self.example
        return example.messages[-2].content if isinstance(example, Conversation) else example.prompt


@dataclass(frozen=True)
class Answer:
    """A question, and what a model says to it."""

    question: Question
    texts: tuple[str, ...]
    """Several where they are drawn, for pass@k; of a classification head, what its outputs say."""
    likelihoods: tuple[float, ...] = field(default=(), repr=False)
    """log p(label | prompt) in nats, for each label, where that was measured."""

    @property
    def text(self) -> str:
        """The answer."""
        return self.texts[0]


def questions_of(rows: Sequence[Placed], tokenizer: PreTrainedTokenizerFast, *, merged: bool = True) -> list[Question]:
    """The questions of rows that have a prompt, in their order; rows that ask the same are one where they are `merged`.

    Raises FinetuneError for a row without an answer to compare with.
    """
    found: dict[tuple[int, ...] | str, Question] = {}
    for place, example in rows:
        if not isinstance(example, Conversation) and not example.prompt:
            continue  # a plain text asks nothing
        ids, reference = prompt_and_reference(example, tokenizer)
        if isinstance(example, Conversation) and example.messages[-1].tool_calls:
            reference = _as_generated(reference, tokenizer)
        if not reference.strip():
            raise FinetuneError(f"{place} has no answer to compare with: give it one, or take the row out of the evaluation.")
        others, tests = (example.references, example.tests) if isinstance(example, Conversation) else ((), "")
        key = tuple(ids) if merged else place
        known = found.get(key)
        if known is None:
            found[key] = Question(place, example, tuple(ids), (reference, *others), tests)
        else:
            references = tuple(dict.fromkeys((*known.references, reference, *others)))
            found[key] = replace(known, references=references, tests=known.tests or tests)
    return list(found.values())


def _as_generated(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """A text as `generate` would give it: without special tokens, as a template's marks around a tool call may be."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


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
    texts = generate(
        model,
        tokenizer,
        [question.prompt_ids for question in questions for _ in range(count)],
        max_new_tokens=section.max_new_tokens,
        batch_size=section.batch_size,
        temperature=section.temperature if count > 1 else 0.0,
        seed=seed,
        progress=progress,
    )
    return [Answer(question, tuple(texts[index * count : (index + 1) * count])) for index, question in enumerate(questions)]

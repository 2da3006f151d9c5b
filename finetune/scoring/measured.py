"""What metrics are computed from: questions, a model's answers to them, losses, and what became of
programs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from data_prep.messages import THINK_END, Conversation, Example, thought_of
from finetune.errors import FinetuneError
from finetune.recipe.schema.evaluate import BleuTokenizer
from finetune.scoring.labels import Labels

T = TypeVar("T")

Of = Literal["losses", "general", "answers", "likelihoods", "programs", "rewards"]
"""What a metric is computed from: the losses of documents; those of a general text; of questions the
generated answers, the likelihoods of their labels, what became of the programs in the answers; or the rewards
of pairs."""


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
    """What the tokens of each reference read back as, which is how a model writes it; empty where no token is
    generated."""

    @property
    def text(self) -> str:
        """What the user wrote last."""
        example = self.example
        return example.messages[-2].content if isinstance(example, Conversation) else example.prompt

    @property
    def expected(self) -> tuple[str, ...]:
        """What an answer is compared with, thoughts aside."""
        return tuple(map(without_thought, self.readings or self.references))

    @property
    def changed(self) -> tuple[str, str] | None:
        """The first reference that reads back otherwise, and as what; blanks around them aside."""
        pairs = zip(map(without_thought, self.references), self.expected, strict=True)
        return next((pair for pair in pairs if pair[0].strip() != pair[1].strip()), None)


@dataclass(frozen=True)
class Prediction:
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

    @property
    def said(self) -> str:
        """The answer without what was thought before it."""
        return without_thought(self.text)


def without_thought(text: str) -> str:
    """What a text says, without what the model thinks before it."""
    return thought_of(text)[1] if THINK_END in text else text


@dataclass(frozen=True)
class LossSum:
    """Cross-entropy over supervised tokens, summed: of a document, or of several."""

    loss_sum: float
    """In nats."""
    tokens: int
    """Supervised tokens that the sum is over."""
    weight: float
    """The same, each by its weight: what the sum is divided by for the mean."""

    @property
    def mean(self) -> float:
        """Nats per token. Raises FinetuneError where there was no supervised token."""
        if self.tokens == 0:
            raise FinetuneError("these documents have no supervised token, so there is no loss to average.")
        return self.loss_sum / self.weight

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite where that overflows."""
        return exponential(self.mean)


def exponential(value: float) -> float:
    """e to the power of a value; infinite where that overflows."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, and why not ("" where it did)."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Measured:
    """What a model made of the evaluation rows; a part that no metric needs is empty."""

    losses: list[LossSum] = field(default_factory=list)
    """Of each document."""
    places: list[str] = field(default_factory=list)
    """Where each document's row stands."""
    bytes: list[float] = field(default_factory=list)
    """Of the text of each document's supervised tokens, each by its weight."""
    answers: list[Prediction] = field(default_factory=list)
    labels: Labels = field(default_factory=lambda: Labels(()))
    programs: list[tuple[Verdict, ...]] = field(default_factory=list)
    """What became of each program of each answer."""
    general: list[LossSum] = field(default_factory=list)
    """Of each document of a general text."""
    general_places: list[str] = field(default_factory=list)
    rewards: list[tuple[float, float]] = field(default_factory=list)
    """Of the chosen and the rejected answer of each pair, whose documents follow one another; of a judged
    answer its reward and the judgement, 1 or 0."""
    bleu_tokenizer: BleuTokenizer = "auto"
    notes: tuple[str, ...] = ()
    """What a person should know of how the answers were made."""

    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def count(self, of: Of) -> int:
        """How many rows a metric is over."""
        counted: dict[Of, list[Any]] = {
            "losses": self.losses, "general": self.general, "programs": self.programs,
            "rewards": self.rewards,
        }  # fmt: skip
        return len(counted.get(of, self.answers))

    def places_of(self, of: Of) -> list[str]:
        """Where these rows are."""
        if of == "rewards":
            return self.places[:: max(1, len(self.places) // len(self.rewards))]
        if of == "general":
            return self.general_places
        return self.places if of == "losses" else [answer.question.place for answer in self.answers]

    def once(self, compute: "Callable[[Measured], T]") -> T:
        """What a function makes of this: computed at the first call, for all metrics that need it."""
        if compute not in self._made:
            self._made[compute] = compute(self)
        return cast(T, self._made[compute])

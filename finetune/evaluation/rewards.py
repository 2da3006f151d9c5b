"""The rewards of a recipe's objective, of answers that its model drew."""

import math
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

from transformers import PreTrainedTokenizerFast

from data_prep.formats.python import code_sha256, load_code, require_allowed
from data_prep.tokenizers.tokens import text_of
from finetune.errors import FinetuneError, ModelError
from finetune.evaluation.predictions import with_answer
from finetune.evaluation.sandbox.programs import exit_in, run_answers
from finetune.evaluation.sandbox.runner import why_no_sandbox
from finetune.evaluation.text_scores import rewards_of_examples
from finetune.extras import refuse_without
from finetune.generation.loading import fingerprint_of, load_ready
from finetune.generation.sampler import Sample
from finetune.models.device import Precision
from finetune.objectives.reward import HEAD
from finetune.recipe.rules.packages import check_metric_packages
from finetune.recipe.schema.rewards import RewardKind, RewardSection
from finetune.runs.target import resolve_target
from finetune.scoring import rewards
from finetune.scoring.labels import Labels
from finetune.scoring.measured import Prediction, Question

FUNCTION = "reward(prompt, answer, references)"
"""What a user's file has."""

Scores = list[float | str]
"""Of each answer its reward, or why it has none."""
Measure = Callable[[Sequence[Prediction], Sequence[int]], Scores]
"""Of answers and their numbers of tokens."""


class Rewards:
    """Scores answers by each of a table's rewards."""

    def __init__(
        self,
        table: Mapping[str, RewardSection],
        labels: Sequence[str],
        *,
        precision: Precision,
        allow_code: Collection[str] = (),
        named: str = "objective.rewards.",
    ):
        """`labels` are those that kind label tells apart; `allow_code` is prepare_data's; `named` stands
        before a reward's name in messages.

        Raises FinetuneError or DataError for a reward that can't be had here.
        """
        self.table, self.labels, self.named = table, Labels(tuple(labels)), named
        self.errors: Counter[str] = Counter()
        """Of each reward, how many answers had none, and count as 0, since somebody took it from here."""
        self.counted = tuple(name for name, own in table.items() if own.on_error == "zero")
        """The rewards without which an answer may be."""
        check_metric_packages(
            [rewards.METRICS[own.kind] for own in table.values() if own.kind in rewards.METRICS]
        )
        self.identity = _identity_of(table)
        """What is outside of the recipe: of reward models their fingerprints, of users' files the SHA-256."""
        self._measures = {
            name: self._measure(f"{named}{name}", own, precision, allow_code) for name, own in table.items()
        }

    def check(self, questions: Sequence[Question]) -> None:
        """Raises FinetuneError where a row has not what a reward compares with."""
        for name, section in self.table.items():
            for question in questions:
                if (problem := self._lacking(section, question)) is not None:
                    raise FinetuneError(f"{self.named}{name}: {question.place} {problem}.")

    def of_samples(
        self,
        questions: Sequence[Question],
        samples: Sequence[Sequence[Sample]],
        tokenizer: PreTrainedTokenizerFast,
    ) -> tuple[list[Prediction], list[list[float]]]:
        """What was drawn to each question as text, all one after the other, and the rewards of each (see
        of)."""
        answers = [
            Prediction(question, (text_of(one.ids, tokenizer),), cuts=(one.cut,))
            for question, own in zip(questions, samples, strict=True)
            for one in own
        ]
        return answers, self.of(answers, [len(one.ids) for own in samples for one in own])

    def of(self, answers: Sequence[Prediction], tokens: Sequence[int]) -> list[list[float]]:
        """The rewards of each answer (A x K, in the table's order), each with its text and its number of
        tokens. Raises FinetuneError where one can't be had, and is told to."""
        columns = [
            [self._number(name, answer, score) for answer, score in zip(answers, scores, strict=True)]
            for name, scores in ((name, measure(answers, tokens)) for name, measure in self._measures.items())
        ]
        return [list(row) for row in zip(*columns, strict=True)] if answers else []

    def _number(self, name: str, answer: Prediction, score: float | str) -> float:
        if isinstance(score, float) and math.isfinite(score):
            return score
        if self.table[name].on_error == "zero":
            self.errors[name] += 1
            return 0.0
        why = score if isinstance(score, str) else f"it is {score!r}, and no finite number"
        raise FinetuneError(
            f"{self.named}{name} can't be had of an answer to {answer.question.place}: {why}. Mend it, "
            "or set its on_error: zero."
        )

    def _measure(
        self, path: str, section: RewardSection, precision: Precision, allow_code: Collection[str]
    ) -> Measure:
        kind = section.kind
        if kind in rewards.METRICS:
            return lambda answers, _: [*rewards.by_metric(kind, answers, self.labels)]
        if kind == "length":
            return lambda _, tokens: [rewards.length(section, count) for count in tokens]
        if kind == "number":
            return lambda answers, _: [
                rewards.number(answer.said, answer.question.expected) for answer in answers
            ]
        if kind == "run":
            return _reward_model(path, section, precision)
        if kind == "pass":
            if (why := why_no_sandbox()) is not None:
                raise FinetuneError(f"{path} runs generated code, and this machine can't confine it: {why}.")
            return lambda answers, _: [
                float(verdict.passed) for (verdict,) in run_answers(answers, seconds=section.seconds)
            ]
        try:
            return _each(_single(path, section, allow_code), section.seconds)
        except ValueError as error:
            raise FinetuneError(f"{path}: {error}.") from None

    def _lacking(self, section: RewardSection, question: Question) -> str | None:
        """What a row lacks for a reward; None for nothing."""
        if section.kind in rewards.COMPARED and not question.references:
            free = ", ".join(kind for kind in get_args(RewardKind) if kind not in (*rewards.COMPARED, "pass"))
            return f"has no answer to compare with: give it one, or take rewards that need none ({free})"
        if section.kind == "pass":
            if not question.tests:
                return "has no tests to run: take format code with test_list, or another reward"
            if (call := exit_in(question.tests)) is not None:
                return (
                    f"has tests that call {call}, which ends a program before it is known whether it passes"
                )
        if section.kind == "number" and all(map(_has_no_number, question.expected)):
            return "has no number in its answer to compare with"
        if section.kind == "label":
            if not self.labels.names:
                return "has a label, and the recipe names none: name them in evaluate.labels"
            self.labels.of_row(question)
        return None


def _identity_of(table: Mapping[str, RewardSection]) -> dict[str, str]:
    found = dict[str, str]()
    for name, section in table.items():
        if section.run is not None:
            judge = fingerprint_of(resolve_target(section.run))
            found |= {f"{name} {part}": value for part, value in judge.items()}
        if section.code is not None:
            found[f"{name} code"] = code_sha256(section.code)
    return found


def _has_no_number(text: str) -> bool:
    return rewards.last_number(text) is None


def _single(path: str, section: RewardSection, allow_code: Collection[str]) -> Callable[[Prediction], float]:
    """A reward of one answer at a time. Raises ValueError or DataError for what can't be read."""
    if section.kind == "regex":
        found = rewards.regex(section)
        return lambda answer: found(answer.said)
    if section.kind == "json_schema":
        refuse_without("jsonschema", f"{path}, of kind json_schema,")
        fits = rewards.json_fits(section.json_schema or {})
        return lambda answer: fits(answer.said)
    assert section.code is not None  # noqa: S101 - the schema sees to it
    require_allowed(section.code, allow_code, path)
    function = load_code(section.code, allow_code, FUNCTION)

    def by_code(answer: Prediction) -> float:
        given = function(answer.question.text, answer.text, list(answer.question.references))
        if isinstance(given, bool | int | float):
            return float(given)
        raise TypeError(f"it returned {given!r:.80}; expected a number")

    return by_code


def _each(score: Callable[[Prediction], float], seconds: float) -> Measure:
    """One answer after the other, each in so many seconds."""

    def scores(answers: Sequence[Prediction], _: Sequence[int]) -> Scores:
        return [_within(partial(score, answer), seconds) for answer in answers]

    return scores


def _within(score: Callable[[], float], seconds: float) -> float | str:
    try:
        with _alarm(seconds):
            return score()
    except _LateError:
        return f"it takes more than {seconds:g} s"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of a user's code, which may raise anything
        return f"it raised {type(error).__name__}: {error}"


class _LateError(BaseException):
    """No Exception, which a user's code may catch."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises _LateError in what goes on for longer. Python's regular expressions look for signals too."""
    if threading.current_thread() is not threading.main_thread():
        raise ModelError(
            "rewards of kind regex, json_schema and python are had in a process's main thread only."
        )

    def late(*_: Any) -> None:
        raise _LateError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reward_model(path: str, section: RewardSection, precision: Precision) -> Measure:
    """A model that ranks answers. Raises ModelError for one that doesn't."""
    assert section.run is not None  # noqa: S101 - the schema sees to it
    target = resolve_target(section.run)
    if target.model.head != HEAD:
        raise ModelError(
            f"{path}: {target.description} ranks no answers; expected a run of objective reward."
        )
    model, tokenizer = load_ready(target, dtype=precision.dtype)

    def scores(answers: Sequence[Prediction], _: Sequence[int]) -> Scores:
        examples = [with_answer(answer.question.example, answer.text) for answer in answers]
        found = rewards_of_examples(model, tokenizer, examples, HEAD, batch_size=16)
        return [row[0] for row in found]

    return scores

"""Reports for people and for programs: tables, the worst answers, predictions line by line."""

import math
from collections.abc import Iterator
from typing import Any

from data_prep.text import one_line
from finetune.evaluation.bootstrap import Interval
from finetune.evaluation.report import ANSWERS, Report, by_row, difference, worst_first
from finetune.scoring.measured import Measured, Prediction
from finetune.scoring.metrics import known, lower_is_better, metric_of

WIDTH = 160
"""Characters of a question or an answer that are shown."""


def score_lines(tuned: Report, base: Report | None) -> Iterator[str]:
    """A line a metric: its value with its 95 % interval; beside a base's the difference, row by row, with its
    own."""
    if base is None:
        yield f"{'metric':<20} {'value':>10}   {'95 % interval':<24} rows"
        for name, score in tuned.scores.items():
            yield f"{name:<20} {_number(score.value):>10}   {_between(score.interval):<24} {score.rows:,}"
        yield from _signatures(tuned)
        return
    yield (
        f"{'metric':<20} {'base':>10} {'tuned':>10}   {'95 % interval':<24} {'difference':>10}   95 % "
        "interval"
    )
    for name, score in tuned.scores.items():
        before, change = base.scores[name], difference(base.scores[name], score)
        row = (
            f"{name:<20} {_number(before.value):>10} {_number(score.value):>10}   "
            f"{_between(score.interval):<24} "
        )
        if change is None:
            yield f"{row}(over other rows)"
        else:
            yield f"{row}{_number(change.value, '+'):>10}   {_between(change, '+')}{_verdict(name, change)}"
    yield from _signatures(tuned)


def _signatures(report: Report) -> Iterator[str]:
    for name, score in report.scores.items():
        if score.signature:
            yield f"{'signature':<20} {name}: {score.signature}"


def _verdict(name: str, change: Interval) -> str:
    if not change.excludes_zero:
        return "  (no clear difference)"
    return "" if (change.value < 0) == lower_is_better(name) else "  (worse)"


def _between(interval: Interval, sign: str = "") -> str:
    if math.isnan(interval.low):
        return "not defined"
    return f"{_number(interval.low, sign)} to {_number(interval.high, sign)}"


def _number(value: float, sign: str = "") -> str:
    digits = 4 if abs(value) < 10 else 2 if abs(value) < 10_000 else 0
    return f"{value:{sign},.{digits}f}"


def worst_metric(report: Report) -> str | None:
    """The metric by which answers are called bad: the first that looks at generated ones."""
    found = (
        metric.name for metric in known(report.scores) if metric.by_row is not None and metric.of in ANSWERS
    )
    return next(found, None)


def worst_lines(report: Report, count: int) -> Iterator[str]:
    """The answers that a metric puts last, for a person; none where all are perfect."""
    name = worst_metric(report)
    if name is None or not count:
        return
    ordered = worst_first(name, report.measured)
    perfect = metric_of(name).best
    chosen = [(index, value) for index, value in ordered if value != perfect][:count]
    if not chosen:
        yield f"each of {len(ordered):,} answers has {name} {_number(perfect)}"
        return
    yield f"the worst by {name}:"
    for index, value in chosen:
        answer = report.measured.answers[index]
        yield f"  {answer.question.place}: {_number(value)}"
        yield f"    asked     {_short(answer.question.text)}"
        yield f"    expected  {' | '.join(map(_short, answer.question.expected[:3]))}"
        yield f"    answered  {_short(answer.text)}{_cut(answer)}"
        if report.measured.programs:
            yield f"    ran       {_short(report.measured.programs[index][0].reason) or 'passed'}"


def _cut(answer: Prediction) -> str:
    return f" (cut {answer.cuts[0]})" if answer.cuts and answer.cuts[0] is not None else ""


def _short(text: str) -> str:
    return one_line(text, WIDTH)


def as_dict(report: Report, base: Report | None = None) -> dict[str, Any]:
    """The figures as plain values, for JSON."""
    found: dict[str, Any] = {"metrics": {}, "notes": list(report.notes), "seconds": report.seconds}
    if base is not None:
        found["base_notes"] = list(base.notes)
    for name, score in report.scores.items():
        entry: dict[str, Any] = _interval(score.interval) | {"rows": score.rows}
        if score.signature:
            entry["signature"] = score.signature
        if base is not None:
            change = difference(base.scores[name], score)
            entry |= {"base": _interval(base.scores[name].interval)}
            entry |= {"difference": None if change is None else _interval(change)}
        found["metrics"][name] = entry
    return found


def _interval(interval: Interval) -> dict[str, float | None]:
    return {name: _finite(getattr(interval, name)) for name in ("value", "low", "high")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def predictions(report: Report) -> Iterator[dict[str, Any]]:
    """An entry an answer: where its row stands, what was asked, the references, what was said, each metric on
    it alone."""
    measured = report.measured
    values = {name: found for name in report.scores if (found := by_row(name, measured)) is not None}
    for index, answer in enumerate(measured.answers):
        entry: dict[str, Any] = {
            "place": answer.question.place,
            "asked": answer.question.text,
            "references": list(answer.question.references),
            "answer": answer.text,
            "metrics": {name: _finite(found[index]) for name, found in values.items()},
        }
        if answer.question.changed is not None:
            entry["read_back"] = list(answer.question.readings)
        if any(answer.cuts):
            entry["cut"] = answer.cuts[0] if len(answer.texts) == 1 else list(answer.cuts)
        if len(answer.texts) > 1:
            entry["answers"] = list(answer.texts)
        if answer.likelihoods:
            entry["log_likelihoods"] = dict(zip(measured.labels.names, answer.likelihoods, strict=True))
        if measured.programs:
            entry["programs"] = [verdict.reason or "passed" for verdict in measured.programs[index]]
        yield entry


def supervised_tokens(measured: Measured) -> int:
    """Tokens that the losses are over."""
    return sum(loss.tokens for loss in measured.losses)

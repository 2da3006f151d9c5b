"""What a report says of runs in words and figures: lists of rows, as the page shows them."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.text import one_line
from finetune.recipe.lock import Lock
from finetune.reporting.record import Estimate, Record
from finetune.runs.compare import FINAL, GROUPS, METRICS, compare, flattened
from finetune.scoring.metrics import lower_is_better

GIGA = 1e9
SHOWN_CHARACTERS = 200
"""Of a value in a table."""
UNFINISHED = ("running", "interrupted")
Row = tuple[str, str]
"""A name and a value."""


def number(value: Any) -> str:
    """A value for a reader; nothing for one that is none."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return one_line(text, SHOWN_CHARACTERS)


def between(estimate: Estimate | None, sign: str = "") -> str:
    """An interval; nothing where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:{sign}.4g} to {estimate.high:{sign}.4g}"


def verdict(metric: str, difference: Estimate | None) -> str:
    """better, worse or no clear difference, by whether an interval holds 0; nothing where none is known."""
    if difference is None or difference.value is None or difference.low is None or difference.high is None:
        return ""
    if difference.low <= 0 <= difference.high:
        return "no clear difference"
    return "better" if (difference.value < 0) == lower_is_better(metric) else "worse"


def headline(outcome: dict[str, Any]) -> list[Row]:
    """The figures that somebody asks for first."""
    if outcome.get("status") in UNFINISHED:
        return []
    before, after = outcome.get("evaluation_loss_before"), outcome.get("evaluation_loss")
    found = [
        ("training loss at the end", number(outcome.get("train_loss"))),
        (
            "evaluation loss, before and after",
            f"{number(before)} → {number(after)}" if after is not None else "",
        ),
        ("steps", number(outcome.get("steps"))),
        ("tokens", number(outcome.get("tokens"))),
        ("tokens a second", number(outcome.get("tokens_per_second"))),
        ("peak memory", gigabytes(outcome.get("peak_memory_bytes"))),
        ("time", duration(outcome.get("seconds"))),
        ("parameters that train", number(outcome.get("trainable_parameters"))),
    ]
    return [(name, value) for name, value in found if value]


def gigabytes(value: Any) -> str:
    """Bytes in GB."""
    return f"{value / GIGA:,.2f} GB" if isinstance(value, int | float) else ""


def duration(seconds: Any) -> str:
    """Seconds in the unit that fits."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def made_of(lock: Lock) -> list[Row]:
    """What was trained on what."""
    base, teacher = lock.base, lock.teacher
    adapter = lock.recipe.adapter
    size = f", rank {adapter.saved_rank}" if adapter.method != "full" else ""
    how = adapter.method + (f", blocks of {adapter.block_size}" if adapter.method == "oft" else size)
    found = [("base", _identity(base)), ("method", how), ("objective", lock.recipe.objective.kind)]
    found += [("teacher", _identity(teacher))] if teacher else []
    found += [("reference", f"{name} {value[:16]}") for name, value in lock.reference.items()]
    found += [("reward", f"{name} {value}") for name, value in lock.rewards.items()]
    found += [("data", f"{name}, SHA-256 {str(sha)[:16]}") for name, sha in lock.data.items()]
    found += [
        ("tokenizer", f"SHA-256 {str(lock.tokenizer_sha256)[:16]}"),
        ("chat template", f"SHA-256 {str(lock.template_sha256)[:16]}"),
        ("begun", lock.created),
        ("command", lock.command),
    ]
    return [(name, str(value)) for name, value in found]


def _identity(of: dict[str, str]) -> str:
    parts = [str(of.get("name", ""))]
    parts += [f"at {of['commit']}"] if of.get("commit") else []
    parts += [f"SHA-256 {str(of['sha256'])[:16]}"] if of.get("sha256") else []
    return ", ".join(parts)


def settings(lock: Lock) -> list[Row]:
    """The recipe's values that somebody wrote; all where nobody knows which those are."""
    recipe = lock.without_secrets()["recipe"]
    return [
        (name, number(value))
        for name, value in flattened(recipe)
        if value is not None and lock.origins.get(name, "" if lock.origins else "?") not in ("", "default")
    ]


def environment(lock: Lock) -> list[Row]:
    """Machine, packages and code."""
    device = [(name, number(value)) for name, value in lock.device.items()]
    code = [(f"git {name}", number(value)) for name, value in lock.git.items()]
    versions = [(name, str(value)) for name, value in lock.versions.items()]
    return [*device, *code, *versions, ("rules", str(lock.rules))]


@dataclass(frozen=True)
class Planned:
    """A figure as it was planned and as it was measured."""

    name: str
    planned: str
    measured: str
    ratio: str
    """The second over the first."""


PLANNED = (
    ("steps", "steps", "steps"),
    ("tokens", "tokens", "tokens"),
    ("parameters that train", "trainable_parameters", "trainable_parameters"),
    ("peak memory of a process", "memory_bytes", "peak_memory_bytes"),
)


def planned(plan: dict[str, Any], outcome: dict[str, Any]) -> list[Planned]:
    """The plan beside what became of it."""
    found = []
    for name, key, measured_key in PLANNED:
        one, other = plan.get(key), outcome.get(measured_key)
        if isinstance(one, int | float) and isinstance(other, int | float):
            shown = gigabytes if key.endswith("bytes") else number
            found.append(Planned(name, shown(one), shown(other), f"{other / one:.2f}" if one else ""))
    return found


@dataclass(frozen=True)
class DifferenceGroup:
    """What differs, of one kind: a value of each run a row."""

    meaning: str
    rows: list[tuple[str, list[str]]]


def differences(records: Sequence[Record]) -> list[DifferenceGroup]:
    """What is recorded and differs between any of the runs, most likely to explain something first."""
    first, *others = [record.lock for record in records]
    if first is None or any(lock is None for lock in others):
        return []
    values: dict[tuple[str, str], list[Any]] = {}
    for at, other in enumerate(others, start=1):
        assert other is not None  # noqa: S101 - as above
        for line in compare(first, other, ({}, {})).differences:
            row = values.setdefault((line.group, line.name), [line.first] * len(records))
            row[at] = line.second
    found = []
    for group, meaning in GROUPS:
        rows = [(name, list(map(number, row))) for (kind, name), row in values.items() if kind == group]
        found += [DifferenceGroup(meaning, rows)] if rows else []
    return found


def side_by_side(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """The runs' metrics, those of the results first."""
    outcomes = [record.outcome for record in records]
    final = dict.fromkeys(name for outcome in outcomes for name in outcome if name.startswith(FINAL))
    rows = [(name, [_with_interval(outcome, name) for outcome in outcomes]) for name in (*final, *METRICS)]
    return [(name, cells) for name, cells in rows if any(cells)]


def _with_interval(outcome: dict[str, Any], name: str) -> str:
    show = gigabytes if name.endswith("_bytes") else number
    value, metrics = show(outcome.get(name)), outcome.get("metrics")
    entry = metrics.get(name.removeprefix(FINAL)) if isinstance(metrics, dict) else None
    if not name.startswith(FINAL) or not isinstance(entry, dict):
        return value
    interval = between(Estimate(None, entry.get("low"), entry.get("high")))
    return f"{value} ({interval})" if interval else value


def state_of(record: Record) -> Iterator[str]:
    """How a run ended, or how far it is, in sentences."""
    outcome = record.outcome
    steps, total = outcome.get("steps"), outcome.get("total_steps")
    if outcome.get("status") in UNFINISHED:  # whose summary is from its beginning
        logged = [int(points.steps[-1]) for points in record.points.values() if len(points)]
        yield f"Of {number(total)} steps the last that was logged is {max(logged, default=0):,}."
    elif steps is not None:
        yield f"{number(steps)} of {number(total)} steps were taken."
    if outcome.get("stopped_because"):
        yield f"It was stopped: {number(outcome['stopped_because'])}."
    if outcome.get("error"):
        yield str(outcome["error"])

"""Everything that a run's folder says of it. What is missing or damaged is said, and the rest is shown."""

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from data_prep.audit.html_report import SourceView, source_views
from data_prep.audit.report import DataReport, report_from
from data_prep.disk import open_regular, read_json
from finetune.errors import CheckpointError, FinetuneError, first_wrong
from finetune.recipe.lock import Lock, read_lock
from finetune.reporting.points import Points, read_points
from finetune.runs.commands import shell_command
from finetune.runs.folder import RunFolder, whole_entries
from finetune.scoring.metrics import Metric, known

T = TypeVar("T")
WORST = 5
"""Answers that are shown."""
LOGGED = re.compile(r"\S+ \S+ (WARNING|ERROR|CRITICAL) (.*)")
"""A line of run.log with something to know."""
MERGES = "*/verification.json"
"""Of merges in a run's folder."""
GENERATED = ("answers", "programs")
"""What a metric of generated texts is computed from."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where it isn't defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MetricEntry(Estimate):
    """A metric on so many rows; with a base's beside it, and the difference, row by row."""

    rows: int | None = None
    base: Estimate | None = None
    difference: Estimate | None = None


@dataclass(frozen=True)
class KeptEvaluation:
    """Metrics that were measured together."""

    metrics: dict[str, MetricEntry]
    notes: list[str] = field(default_factory=list)
    name: str = ""
    """Of the file in predictions/, without its suffix."""


@dataclass(frozen=True)
class TaskFigure:
    """A metric of a benchmark's task; with a base's the difference."""

    task: str
    metric: str
    value: float | None
    standard_error: float | None
    difference: float | None = None
    difference_standard_error: float | None = None


@dataclass(frozen=True)
class Benchmarked:
    """Tasks that were asked together."""

    tasks: list[str]
    figures: list[TaskFigure]
    notes: list[str] = field(default_factory=list)
    compare: str | None = None


@dataclass(frozen=True)
class KeptAnswer:
    """An answer to an evaluation row."""

    place: str
    asked: str
    answer: str
    metrics: dict[str, float | None]
    references: list[str] = field(default_factory=list)
    base: str | None = None
    """What the base answered."""


@dataclass(frozen=True)
class Worst:
    """The answers that metrics put last."""

    metrics: list[str]
    """The first decides; the others where it doesn't tell answers apart."""
    source: str
    answers: list[KeptAnswer]
    of: int
    """How many there are."""


@dataclass(frozen=True)
class PromptSamples:
    """What the model wrote to a prompt, first and last."""

    prompt: str
    answers: list[tuple[int, str]]
    """Step and text."""


@dataclass(frozen=True)
class WrittenSample:
    """A line of samples.jsonl."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class TensorProof:
    """Of a merge: its tensors, written and read again."""

    tensors: int
    identical: int
    sampled_numbers: int
    failures: list[str]
    largest_error_ulps: float | None = None


@dataclass(frozen=True)
class SameAnswer:
    """A greedy answer before the merge and after it."""

    prompt: str
    before: str
    after: str

    @property
    def same(self) -> bool:
        """Letter by letter."""
        return self.before == self.after


@dataclass(frozen=True)
class PredictionProof:
    """Of a merge: its predictions beside those of base + adapter."""

    holds: bool
    verdict: str
    failures: list[str]
    texts: str = ""
    answers: list[SameAnswer] = field(default_factory=list)


@dataclass(frozen=True)
class KeptMerge:
    """A merge in the run's folder, and its proof."""

    dtype: str = ""
    parameters: int | None = None
    bytes: int | None = None
    notes: list[str] = field(default_factory=list)
    tensors: TensorProof | None = None
    verification: PredictionProof | None = None
    folder: str = ""

    @property
    def failures(self) -> list[str]:
        """What does not hold, in words."""
        return [
            line
            for proof in (self.tensors, self.verification)
            if proof is not None
            for line in proof.failures
        ]


@dataclass
class Record:
    """A run, as far as its folder says it."""

    run: RunFolder
    name: str
    outcome: dict[str, Any] = field(default_factory=dict)
    lock: Lock | None = None
    points: dict[str, Points] = field(default_factory=dict)
    evaluations: list[KeptEvaluation] = field(default_factory=list)
    samples: list[PromptSamples] = field(default_factory=list)
    worst: Worst | None = None
    data: DataReport | None = None
    sources: list[SourceView] = field(default_factory=list)
    """Of the data."""
    benchmarks: list[Benchmarked] = field(default_factory=list)
    merged: list[KeptMerge] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    """Each line with how often it was logged."""
    missing: list[str] = field(default_factory=list)
    """What the folder lacks, or has damaged, in words."""

    def take(self, what: str, read: Callable[[RunFolder], T], absent: str = "") -> T | None:
        """A part of the folder; None where it can't be read, which is noted, or where there is none, which is
        noted as `absent`."""
        try:
            return read(self.run)
        except FileNotFoundError:
            self.missing += [absent] if absent else []
        except OSError as error:
            self.missing.append(f"{what} can't be read: {error.strerror or error}")
        except ValidationError as error:
            self.missing.append(f"{what} can't be read: {first_wrong(error)}")
        except (FinetuneError, ValueError) as error:
            self.missing.append(f"{what} can't be read: {str(error).splitlines()[0]}")
        return None

    def take_each(self, what: str, files: str, kind: type[T]) -> list[T]:
        """One of this kind from each file of the folder that a pattern names; a damaged one costs itself."""

        def reader(path: Path) -> Callable[[RunFolder], T]:
            return lambda _: _validated(kind, _object(path) | {"folder": path.parent.name}, path)

        paths = sorted(self.run.path.glob(files))
        return [one for path in paths if (one := self.take(what, reader(path))) is not None]


def read_record(run: RunFolder, name: str) -> Record:
    """All that there is of a run."""
    found = Record(run, name)
    take = found.take
    found.lock = take("the lock", lambda run: read_lock(run.lock_path))
    found.outcome = take("the outcome", RunFolder.outcome) or {}
    found.points = (
        take("the curves", lambda run: read_points(run.metrics_path), "no curves: nothing was logged") or {}
    )
    found.evaluations = take("the metrics", lambda run: list(_evaluations(run, found.outcome))) or []
    found.benchmarks = found.take_each("the benchmarks", "predictions/benchmark-*.json", Benchmarked)
    found.worst = take("the answers", lambda run: _worst(run, found.evaluations))
    found.samples = take("the samples", _samples, "no samples: tracking.samples has the prompts") or []
    audit = f"no data audit was kept: {shell_command('data', run.lock_path)} makes it"
    found.data, found.sources = take("the data audit", _audit, audit) or (None, [])
    found.plan = take("the plan", lambda run: _object(run.plan_path), "no plan was kept") or {}
    found.merged = found.take_each("the merge", MERGES, KeptMerge)
    found.warnings = take("run.log", _warnings, "no run.log") or {}
    if not found.evaluations:
        found.missing.append(f"no metrics: {shell_command('evaluate', run.path)} measures them")
    if not any(run.path.glob(MERGES)):
        found.missing.append("no merge in the run's folder; one elsewhere has its proof beside it")
    return found


def _validated(kind: type[T], value: object, path: Path) -> T:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise CheckpointError(f"{path.name} is damaged: {first_wrong(error)}.") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path.name} is damaged: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is damaged: expected an object, got {type(value).__name__}.")
    return value


def _evaluations(run: RunFolder, outcome: dict[str, Any]) -> Iterator[KeptEvaluation]:
    """What was measured at the end, and by finetune evaluate, in the order of the files' ages."""
    if outcome.get("metrics"):
        kept = {"metrics": outcome["metrics"], "notes": outcome.get("notes", []), "name": "final"}
        yield _validated(KeptEvaluation, kept, run.summary_path)
    paths = [path for path in run.predictions.glob("evaluate-*.json") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime, path.name)):
        values = _object(path)
        kept = {"metrics": values.get("metrics"), "notes": values.get("notes", []), "name": path.stem}
        yield _validated(KeptEvaluation, kept, path)


def _audit(run: RunFolder) -> tuple[DataReport, list[SourceView]]:
    report = report_from(_object(run.data_path))
    return report, source_views(report)


def _worst(run: RunFolder, evaluations: list[KeptEvaluation]) -> Worst | None:
    """Of the newest answers, those that the first metric of texts puts last; a base's beside them."""
    for evaluation in reversed(evaluations):
        path = run.predictions / f"{evaluation.name}.jsonl"
        metrics = [one for one in known(evaluation.metrics) if one.by_row is not None and one.of in GENERATED]
        if not metrics or not path.is_file():
            continue
        answers = _answers(path)
        bad = [
            answer for answer in answers if answer.metrics.get(metrics[0].name) not in (None, metrics[0].best)
        ]
        worst = heapq.nsmallest(WORST, bad, key=lambda answer: _goodness(answer, metrics))
        names = [metric.name for metric in metrics]
        return Worst(names, evaluation.name, _with_base(path, worst), len(answers))
    return None


def _goodness(answer: KeptAnswer, metrics: Sequence[Metric]) -> list[float]:
    """An answer's metrics, the first one first, with signs so that more is better."""
    values = [(metric, answer.metrics.get(metric.name)) for metric in metrics]
    return [
        0.0 if value is None else value if metric.higher_is_better else -value for metric, value in values
    ]


def _answers(path: Path) -> list[KeptAnswer]:
    return [_validated(KeptAnswer, value, path) for value in whole_entries(path)]


def _with_base(path: Path, answers: list[KeptAnswer]) -> list[KeptAnswer]:
    """The same with what the base answered to the rows, where that was measured too."""
    beside = path.with_suffix(".base.jsonl")
    if not beside.is_file():
        return answers
    said = {answer.place: answer.answer for answer in _answers(beside)}
    return [replace(answer, base=said.get(answer.place)) for answer in answers]


def _samples(run: RunFolder) -> list[PromptSamples]:
    """Each prompt's answers, in the order of the steps."""
    found: dict[str, list[tuple[int, str]]] = {}
    for value in whole_entries(run.samples_path):
        entry = _validated(WrittenSample, value, run.samples_path)
        found.setdefault(entry.prompt, []).append((entry.step, entry.answer))
    return [PromptSamples(prompt, answers) for prompt, answers in found.items()]


def _warnings(run: RunFolder) -> dict[str, int]:
    with open_regular(run.log_path) as file:
        lines = (LOGGED.match(line.decode(errors="replace")) for line in file)
        return dict(Counter(found[2] for found in lines if found is not None))

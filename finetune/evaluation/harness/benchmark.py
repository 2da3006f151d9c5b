"""Benchmark tasks on a model, or on two side by side; a run keeps the result."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.evaluation.harness import tasks as harness
from finetune.evaluation.harness.tasks import Figure, ScoreDelta, Scores, Tasks
from finetune.generation.loading import load_ready
from finetune.models.device import Precision, choose_precision
from finetune.runs.folder import RunFolder, write_json
from finetune.runs.target import Target

logger = logging.getLogger(__name__)

LONGEST_NAME = 100
"""Characters of the tasks' names in a file's name."""


@dataclass(frozen=True)
class Benchmark:
    """The figures of a model's answers, and what they were measured with."""

    model: str
    compared: str | None
    """The model that was measured too."""
    precision: Precision
    tasks: list[str]
    asked: dict[str, Any]
    """Limit, few-shot examples, chat template; versions and seeds."""
    figures: list[Figure]
    differences: list[ScoreDelta]
    """With `compared`: each figure of both, and the difference."""
    notes: list[str]
    seconds: float
    kept: Path | None
    """The file in the run's folder."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model,
            "compare": self.compared,
            "precision": self.precision.name,
            "tasks": self.tasks,
            **self.asked,
            "figures": [pair.as_dict() for pair in self.differences]
            or [figure.as_dict() for figure in self.figures],
            "notes": self.notes,
            "seconds": self.seconds,
        }


def run_benchmark(
    tuned: Target,
    compared: Target | None,
    names: Sequence[str],
    *,
    task_folder: Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
) -> Benchmark:
    """Ask a model (and, before it, one to compare it with) the tasks of the LM Evaluation Harness.

    Raises ModelError for a model that predicts labels, and what `load_tasks` raises for tasks.
    """
    targets = [tuned] if compared is None else [compared, tuned]
    _refuse_heads(targets)
    logger.info(f"loading {', '.join(names)}")
    tasks = harness.load_tasks(names, task_folder, few_shot)
    kept = _kept_file(tuned, tasks)
    precision = choose_precision("auto")
    scores = []
    for found in targets:
        logger.info(f"asking {found.description}")
        scores.append(
            _scores(
                found,
                precision,
                tasks,
                batch_size=batch_size,
                limit=limit,
                chat=chat,
                paired=len(targets) > 1,
            )
        )
    result = Benchmark(
        model=tuned.description,
        compared=None if compared is None else compared.description,
        precision=precision,
        tasks=tasks.names,
        asked={"limit": limit, "few_shot": few_shot, "chat": chat, **harness.settings()},
        figures=scores[-1].figures,
        differences=harness.compare(*scores) if len(scores) > 1 else [],
        notes=[*tasks.notes, *_run_notes(targets, scores)],
        seconds=sum(each.seconds for each in scores),
        kept=kept,
    )
    if kept is not None:
        write_json(kept, result.as_dict())
    return result


def _refuse_heads(targets: Sequence[Target]) -> None:
    """Raises ModelError for a model that predicts labels."""
    for found in targets:
        if found.model.classifies:
            raise ModelError(
                f"{found.description} has a classification head and predicts no text, as benchmark tasks "
                "need."
            )


def _scores(
    found: Target,
    precision: Precision,
    tasks: Tasks,
    *,
    batch_size: int,
    limit: int | None,
    chat: bool,
    paired: bool,
) -> Scores:
    """One model's figures; it is loaded for this alone, so that two need no room together."""
    model, tokenizer = load_ready(found, dtype=precision.dtype)
    return harness.run_tasks(
        tasks, model, tokenizer, batch_size=batch_size, limit=limit, chat=chat, keep_questions=paired
    )


def _run_notes(targets: Sequence[Target], scores: Sequence[Scores]) -> list[str]:
    """What showed while the models answered; said once where it is so for both."""
    noted: dict[str, list[str]] = {}
    for found, each in zip(targets, scores, strict=True):
        for note in each.notes:
            noted.setdefault(note, []).append(found.description)
    return [note if len(who) == len(targets) else f"{who[0]}: {note}" for note, who in noted.items()]


def _kept_file(found: Target, tasks: Tasks) -> Path | None:
    """Where a run keeps the result, the folder made now, while nothing is lost by failing; None for a target
    that is no run."""
    if found.run is None:
        return None
    return RunFolder(found.run).make_predictions() / f"benchmark-{_file_name(tasks.names)}.json"


def _file_name(names: list[str]) -> str:
    """The tasks' names as part of a file's name; a hash tells apart what had to be shortened or replaced."""
    joined = "+".join(names)
    plain = re.sub(r"[^\w.+-]", "_", joined)[:LONGEST_NAME]
    return plain if plain == joined else f"{plain}-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"

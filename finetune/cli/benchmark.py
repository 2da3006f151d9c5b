"""finetune benchmark: tasks of the LM Evaluation Harness on a model or a run."""

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.common import BaseOption, CompareOption, JsonOption, out, print_json, tell_messages
from finetune.cli.generate import TargetArgument

if TYPE_CHECKING:
    from finetune.evaluation.harness.tasks import Figure, ScoreDelta, Scores, Tasks
    from finetune.models.device import Precision
    from finetune.runs.target import Target

logger = logging.getLogger(__name__)

LONGEST_NAME = 100
"""Characters of the tasks' names in a file's name."""


def benchmark(
    target: TargetArgument,
    task: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="A task, group or tag of lm-eval; may be given several times."),
    ],
    task_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Your own task files (lm-eval's YAML). Functions that they name are run: read them.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first N questions of each task, to try it.")
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Solved examples; else the task's number.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Batch size; lower it if you run out of memory.")
    ] = 8,
    base: BaseOption = None,
    compare: CompareOption = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--no-chat",
            help=(
                "Put prompts into the model's chat template. Off, as in lm-eval, so that figures compare "
                "with published ones."
            ),
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run benchmark tasks.

    Tasks of the LM Evaluation Harness, with a run's adapter on its base, not merged; a run keeps the result
    in predictions/. A task's data come from the hub, unless its file names local ones.

    Needs lm-eval: pip install "llama-finetune[benchmarks]"
    """
    from finetune.evaluation.harness import tasks as benchmarks
    from finetune.evaluation.harness.lm_eval import check_installed
    from finetune.runs.folder import write_json
    from finetune.runs.target import compared_with, resolve_target

    check_installed()
    tuned = resolve_target(target, base)
    targets = [tuned] if compare is None else [compared_with(tuned, compare), tuned]
    _refuse_heads(targets)
    tell_messages(as_json)
    logger.info(f"loading {', '.join(task)}")
    tasks = benchmarks.load_tasks(task, task_folder, few_shot)
    kept = _kept_file(targets[-1], tasks)

    from finetune.models.device import choose_precision

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
    differences = benchmarks.compare(*scores) if len(scores) > 1 else []
    notes = [*tasks.notes, *_run_notes(targets, scores)]
    result = {
        "model": targets[-1].description,
        "compare": targets[0].description if differences else None,
        "precision": precision.name,
        "tasks": tasks.names,
        "limit": limit,
        "few_shot": few_shot,
        "chat": chat,
        **benchmarks.settings(),
        "figures": [pair.as_dict() for pair in differences]
        or [figure.as_dict() for figure in scores[-1].figures],
        "notes": notes,
        "seconds": sum(each.seconds for each in scores),
    }
    if kept is not None:
        write_json(kept, result)
    if as_json:
        print_json(result)
        return
    _print(result, scores[-1].figures, differences, f"{precision.name} ({precision.reason})")
    if kept is not None:
        out(f"kept in    {kept}")


def _refuse_heads(targets: "list[Target]") -> None:
    """Raises ModelError for a model that predicts labels."""
    from finetune.errors import ModelError

    for found in targets:
        if found.model.classifies:
            raise ModelError(
                f"{found.description} has a classification head and predicts no text, as benchmark tasks "
                "need."
            )


def _scores(
    found: "Target",
    precision: "Precision",
    tasks: "Tasks",
    *,
    batch_size: int,
    limit: int | None,
    chat: bool,
    paired: bool,
) -> "Scores":
    """One model's figures; it is loaded for this alone, so that two need no room together."""
    from finetune.evaluation.harness.tasks import run_tasks
    from finetune.generation.loading import load_ready

    model, tokenizer = load_ready(found, dtype=precision.dtype)
    return run_tasks(
        tasks, model, tokenizer, batch_size=batch_size, limit=limit, chat=chat, keep_questions=paired
    )


def _run_notes(targets: "list[Target]", scores: "list[Scores]") -> list[str]:
    """What showed while the models answered; said once where it is so for both."""
    noted: dict[str, list[str]] = {}
    for found, each in zip(targets, scores, strict=True):
        for note in each.notes:
            noted.setdefault(note, []).append(found.description)
    return [note if len(who) == len(targets) else f"{who[0]}: {note}" for note, who in noted.items()]


def _kept_file(found: "Target", tasks: "Tasks") -> Path | None:
    """Where a run keeps the result, the folder made now, while nothing is lost by failing; None for a target
    that is no run."""
    from finetune.runs.folder import RunFolder

    if found.run is None:
        return None
    return RunFolder(found.run).make_predictions() / f"benchmark-{_file_name(tasks.names)}.json"


def _file_name(names: list[str]) -> str:
    """The tasks' names as part of a file's name; a hash tells apart what had to be shortened or replaced."""
    joined = "+".join(names)
    plain = re.sub(r"[^\w.+-]", "_", joined)[:LONGEST_NAME]
    return plain if plain == joined else f"{plain}-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"


def _print(
    result: dict[str, Any], figures: "list[Figure]", differences: "list[ScoreDelta]", precision: str
) -> None:
    from finetune.cli.runs import print_table

    facts = [("model", result["model"]), ("precision", precision), ("seconds", f"{result['seconds']:.1f}")]
    if differences:
        facts = [("base", result["compare"]), ("tuned", result["model"]), *facts[1:]]
    for name, value in facts:
        out(f"{name:<10} {value}")
    for note in result["notes"]:
        out(f"note       {note}")
    out("")
    heads = ["task", "metric", "shots", "questions"]
    if differences:
        rows = [[*heads, "base", "std. error", "tuned", "std. error", "difference", "std. error"]]
        for pair in differences:
            numbers = [pair.base.value, pair.base.standard_error, pair.tuned.value, pair.tuned.standard_error]
            rows.append(
                [
                    *_what(pair.tuned),
                    *map(_cell, numbers),
                    _cell(pair.difference, "+"),
                    _cell(pair.standard_error),
                ]
            )
    else:
        rows = [[*heads, "value", "std. error"]]
        rows += [[*_what(figure), _cell(figure.value), _cell(figure.standard_error)] for figure in figures]
    print_table(rows)


def _what(figure: "Figure") -> list[str]:
    """The cells that say what a figure is."""
    filtered = f" ({figure.filter})" if figure.filter != "none" else ""
    lower = ", lower is better" if figure.higher_is_better is False else ""
    counts = ["-" if count is None else f"{count:,}" for count in (figure.shots, figure.questions)]
    return [figure.task, f"{figure.metric}{filtered}{lower}", *counts]


def _cell(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign}.4g}"

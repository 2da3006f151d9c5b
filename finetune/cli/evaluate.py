"""finetune evaluate: a model's figures on a recipe's evaluation rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import (
    AllowCodeOption,
    BaseOption,
    CompareOption,
    JsonOption,
    OverridesArgument,
    allowed_code,
    out,
    print_json,
    progress_line,
)
from finetune.cli.generate import TargetArgument

if TYPE_CHECKING:
    from finetune.evaluation.report import Report
    from finetune.runs.target import Target

OutputOption = Annotated[
    Path | None,
    typer.Option(help="The folder for predictions and figures; a run's own predictions/ when absent."),
]
WorstOption = Annotated[int, typer.Option(min=0, help="How many of the worst answers to print.")]


def evaluate(
    target: TargetArgument,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="A recipe's file, or a shipped one's name; a run's own when absent."
        ),
    ] = None,
    overrides: OverridesArgument = None,
    base: BaseOption = None,
    compare: CompareOption = None,
    output: OutputOption = None,
    worst: WorstOption = 3,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model or a run.

    The metrics of a recipe on its evaluation rows, with their 95 % intervals.
    """
    from finetune import api
    from finetune.errors import FinetuneError
    from finetune.runs.folder import RunFolder
    from finetune.runs.target import compared_with, own_recipe, resolve_target, with_rows

    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        raise FinetuneError(
            f"got {recipe} in place of a recipe: an override needs one (finetune evaluate RUN RECIPE "
            "KEY=VALUE)."
        )
    given = None if recipe is None else with_rows(api.load_recipe(recipe, overrides or []).recipe, recipe)
    tuned = resolve_target(target, base)
    scored = given or own_recipe(tuned)
    compared = None if compare is None else compared_with(tuned, compare)

    from finetune.evaluation.evaluation import Evaluation
    from finetune.evaluation.report_tables import as_dict, score_lines, supervised_tokens, worst_lines
    from finetune.models.device import choose_precision

    if output is not None:
        _make(output)  # before minutes are spent
    folder = output or (RunFolder(tuned.run).make_predictions() if tuned.run is not None else None)
    precision = choose_precision(scored.train.precision)
    evaluation = Evaluation(
        scored,
        precision,
        allow_code=allowed_code(allow_code),
        progress=progress_line("answers", quiet=as_json),
    )
    before = None if compared is None else evaluation.of(compared)
    report = evaluation.of(tuned)
    kept = [] if folder is None else _keep(folder, Path(recipe or target).stem, report, before)
    if as_json:
        facts = {
            "model": tuned.description,
            "base": compared.description if compared else None,
            "precision": precision.name,
        }
        print_json(facts | as_dict(report, before) | {"files": kept})
        return
    for name, value in _facts(tuned, compared, report):
        out(f"{name:<12} {value}")
    out(f"{'precision':<12} {precision.name} ({precision.reason})")
    if supervised_tokens(report.measured):
        out(
            f"{'tokens':<12} {supervised_tokens(report.measured):,} supervised in "
            f"{len(report.measured.losses):,} rows"
        )
    notes = [*report.notes, *(f"base: {note}" for note in (before.notes if before is not None else ()))]
    for line in ("", *score_lines(report, before), "", *(f"note: {note}" for note in notes)):
        out(line)
    for line in worst_lines(report, worst):
        out(line)
    for path in kept:
        out(f"{'kept':<12} {path}")


def _facts(tuned: "Target", base: "Target | None", report: "Report") -> list[tuple[str, str]]:
    seconds = ", ".join(f"{value:.1f} for {name}" for name, value in report.seconds.items())
    compared = [("base", base.description)] if base is not None else []
    return [("model", tuned.description), *compared, ("seconds", seconds or "0")]


def _make(folder: Path) -> None:
    from finetune.errors import FinetuneError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinetuneError(f"--output {folder} can't be a folder: {error.strerror}. Name another.") from None


def _keep(folder: Path, name: str, report: "Report", base: "Report | None") -> list[str]:
    """Write predictions and figures under a name that is free; the files' names."""
    from finetune.evaluation.report_tables import as_dict, predictions
    from finetune.runs.folder import write_entries, write_json

    number, stem = 1, f"evaluate-{name}"
    while (folder / f"{stem}.json").exists():
        number += 1
        stem = f"evaluate-{name}-{number}"
    entries = {f"{stem}.jsonl": report} | ({f"{stem}.base.jsonl": base} if base is not None else {})
    for file, made in entries.items():
        write_entries(folder / file, predictions(made))
    write_json(folder / f"{stem}.json", as_dict(report, base), indent=1)
    return [str(folder / file) for file in (*entries, f"{stem}.json")]

"""finetune benchmark: tasks of the LM Evaluation Harness on a model or a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import BaseOption, CompareOption, JsonOption, out, print_json, tell_messages
from finetune.cli.generate import TargetArgument

if TYPE_CHECKING:
    from finetune.evaluation.harness.benchmark import Benchmark
    from finetune.evaluation.harness.tasks import Figure


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
    from finetune import api

    tell_messages(as_json)
    result = api.benchmark(
        target,
        task,
        compare=compare,
        base=base,
        task_folder=task_folder,
        limit=limit,
        few_shot=few_shot,
        batch_size=batch_size,
        chat=chat,
    )
    if as_json:
        print_json(result.as_dict())
        return
    _print(result)
    if result.kept is not None:
        out(f"kept in    {result.kept}")


def _print(result: "Benchmark") -> None:
    from finetune.cli.runs import print_table

    precision = f"{result.precision.name} ({result.precision.reason})"
    facts = [("model", result.model), ("precision", precision), ("seconds", f"{result.seconds:.1f}")]
    if result.differences:
        facts = [("base", str(result.compared)), ("tuned", result.model), *facts[1:]]
    for name, value in facts:
        out(f"{name:<10} {value}")
    for note in result.notes:
        out(f"note       {note}")
    out("")
    heads = ["task", "metric", "shots", "questions"]
    if result.differences:
        rows = [[*heads, "base", "std. error", "tuned", "std. error", "difference", "std. error"]]
        for pair in result.differences:
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
        rows += [
            [*_what(figure), _cell(figure.value), _cell(figure.standard_error)] for figure in result.figures
        ]
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

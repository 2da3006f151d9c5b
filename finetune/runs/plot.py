"""Curves of runs: as a PNG through matplotlib, or in the terminal through plotext."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.extras import refuse_without
from finetune.runs.folder import RunFolder, whole_entries

PLOTTED = ("train/loss", "eval/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second")
MARKS = "*x+o#@%"


@dataclass(frozen=True)
class Curve:
    """One metric of one run."""

    run: str
    steps: list[int]
    values: list[float]


def read_curves(runs: Sequence[RunFolder], metrics: Sequence[str]) -> dict[str, list[Curve]]:
    """The curves of each metric that any of the runs has. Raises CheckpointError for a metric that none
    has."""
    same = len({run.name for run in runs}) < len(runs)
    entries = {str(run.path) if same else run.name: read_metrics(run) for run in runs}
    found: dict[str, list[Curve]] = {}
    for metric in metrics:
        for name, lines in entries.items():
            points = [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]
            if points:
                found.setdefault(metric, []).append(
                    Curve(name, [step for step, _ in points], [value for _, value in points])
                )
    absent = [metric for metric in metrics if metric not in found]
    if absent and (tuple(metrics) != PLOTTED or not found):
        known = sorted({key for lines in entries.values() for line in lines for key in line} - {"step"})
        raise CheckpointError(
            f"none of the runs has {', '.join(absent)}; they have {', '.join(known) or 'no metrics yet'}."
        )
    return found


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that was cut short is left out. Raises CheckpointError where it
    is damaged."""
    if not run.metrics_path.is_file():
        return []
    found = list(whole_entries(run.metrics_path))
    for number, entry in enumerate(found, start=1):
        numbers = isinstance(entry, dict) and all(
            isinstance(value, int | float | None) for value in entry.values()
        )
        if not numbers or not isinstance(entry.get("step"), int):
            raise CheckpointError(
                f"{run.metrics_path}:{number} is damaged: expected numbers by their names, and a step."
            )
    return found


def save_png(curves: dict[str, list[Curve]], path: Path) -> None:
    """One picture, a panel for each metric. Raises FinetuneError where matplotlib is not installed."""
    if path.suffix.lower() != ".png":
        raise CheckpointError(f"--output is {path}; expected a name that ends in .png.")
    refuse_without("matplotlib", "a PNG")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(curves), 1, figsize=(9, 2.6 * len(curves)), squeeze=False, layout="constrained"
    )
    for panel, (metric, lines) in zip(panels[:, 0], curves.items(), strict=True):
        for curve in lines:
            marker = "o" if len(curve.steps) < 30 else None
            panel.plot(curve.steps, curve.values, label=curve.run, marker=marker, markersize=3, linewidth=1.2)
        panel.set_title(metric, loc="left", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    panels[-1, 0].set_xlabel("step")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw(curves: dict[str, list[Curve]], width: int, height: int, *, colours: bool) -> str:
    """The same in characters, one metric below the other; without colours each run has a mark of its own.

    Raises FinetuneError where plotext is not installed.
    """
    refuse_without("plotext", "a plot in the terminal")
    import plotext

    pictures = []
    for metric, lines in curves.items():
        plotext.clear_figure()
        plotext.theme("pro" if colours else "clear")
        plotext.plotsize(width, height)
        for index, curve in enumerate(lines):
            marker = "braille" if colours or index == 0 else MARKS[index % len(MARKS)]
            plotext.plot(
                curve.steps, curve.values, label=curve.run if len(lines) > 1 else None, marker=marker
            )
        plotext.title(metric)
        plotext.xlabel("step")
        pictures.append(plotext.build() if colours else plotext.uncolorize(plotext.build()))
    return "\n\n".join(pictures)

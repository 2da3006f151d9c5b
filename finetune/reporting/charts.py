"""Curves as SVG: what is drawn where. One chart holds a metric of all runs, in its own units; the page scales
it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.reporting.points import Points

WIDTH, HEIGHT = 340, 170
"""Of a chart's area."""
MOST_POINTS = 800
"""Of a line that are drawn: two a stretch, about one stretch a pixel."""
MEANS = 80
"""Points of the line through the middle of a noisy one."""
NOISY = 3 * MEANS
"""Points from which a line has such a one."""
FEW = 40
"""Points up to which each has a mark of its own."""
SPIKE = 20
"""How many times its median a metric's highest value is, from which its axis is logarithmic."""
MOST_CHARTS = 40
GIGA = 1e9


@dataclass(frozen=True)
class RunCurve:
    """One metric of one run in a chart."""

    label: str
    colour: int
    """Which of the page's colours, from 0."""
    evaluated: bool
    points: Points
    """As it was logged."""


@dataclass(frozen=True)
class DrawnLine:
    """What is drawn of a curve."""

    curve: RunCurve
    points: str
    """Of a polyline, in the chart's units from its upper left corner."""
    middle: str
    """A second one, through the middle of what is noisy; empty where it isn't."""
    dots: list[tuple[float, float]]
    facts: str
    """Its last, lowest and highest value, in words."""


@dataclass(frozen=True)
class RunChart:
    """One metric, or two that belong together, of all runs."""

    title: str
    unit: str
    lines: list[DrawnLine]
    across: tuple[float, float]
    """The first and the last step."""
    up: tuple[float, float]
    """The lowest and the highest value of the axis."""
    logarithmic: bool
    x_ticks: list[tuple[float, str]]
    """Places and labels."""
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class ChartSpec:
    """Which metrics a chart draws, and how it is called."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    divisor: float = 1.0


DRAWN = (
    ChartSpec("Loss", "the objective's; of supervised training nats per token", ("train/loss", "eval/loss")),
    ChartSpec(
        "Learning rate",
        "",
        ("train/learning_rate", "train/learning_rate_lora_b", "train/learning_rate_embeddings"),
    ),
    ChartSpec("Gradient norm", "L2, before clipping", ("train/gradient_norm",)),
    ChartSpec("Speed", "tokens a second", ("train/tokens_per_second",)),
    ChartSpec("Memory", "GB, peak", ("system/memory_bytes",), GIGA),
)
NOT_DRAWN = frozenset({"train/epoch", "train/supervised_tokens", "eval/perplexity"})
"""What the step says too, or the loss."""


def charts_of(runs: Sequence[tuple[str, dict[str, Points]]]) -> list[RunChart]:
    """The charts of all that runs, by their names, have logged: the known metrics first, then the others."""
    named = {metric for drawn in DRAWN for metric in drawn.metrics} | NOT_DRAWN
    others = dict.fromkeys(
        name for _, points in runs for name in points if name not in named and not name.startswith("final/")
    )
    everything = (*DRAWN, *(ChartSpec(name, "", (name,)) for name in others))
    made = (_chart(drawn, list(_curves(drawn, runs))) for drawn in everything)
    return [chart for chart in made if chart is not None][:MOST_CHARTS]


def _curves(drawn: ChartSpec, runs: Sequence[tuple[str, dict[str, Points]]]) -> Iterator[RunCurve]:
    """In the colours of the runs; of one run alone in the colours of its metrics."""
    several = sum(any(len(points.get(metric, ())) for _, points in runs) for metric in drawn.metrics) > 1
    for number, (run, points) in enumerate(runs):
        for place, metric in enumerate(drawn.metrics):
            if not len(points.get(metric, ())):
                continue
            words = [run] if len(runs) > 1 else []
            words += [LABELS.get(metric, metric.partition("/")[2])] if several or not words else []
            found = points[metric]
            scaled = Points(found.steps, found.values / drawn.divisor, found.left_out)
            colour = number if len(runs) > 1 else place
            yield RunCurve(", ".join(words), colour, metric.startswith("eval/"), scaled)


LABELS = {"train/loss": "training", "eval/loss": "evaluation"}


def _chart(drawn: ChartSpec, curves: list[RunCurve]) -> RunChart | None:
    if not curves:
        return None
    values = np.concatenate([curve.points.values for curve in curves])
    steps = [int(step) for curve in curves for step in (curve.points.steps[0], curve.points.steps[-1])]
    across = (float(min(steps)), float(max(max(steps), min(steps) + 1)))
    logarithmic = bool(values.min() > 0 and values.max() > SPIKE * np.median(values))
    low, high = float(values.min()), float(values.max())
    up = _widened(low, high, logarithmic)
    place_y = _place(*up, logarithmic)
    place_x = _place(*across, False)
    return RunChart(
        drawn.title,
        drawn.unit,
        [_line(curve, place_x, place_y) for curve in curves],
        across,
        up,
        logarithmic,
        [(WIDTH * float(place_x(tick)), short(tick)) for tick in ticks(*across, 5) if tick == int(tick)],
        [
            (HEIGHT * (1 - float(place_y(tick))), short(tick))
            for tick in (log_ticks(*up) if logarithmic else ticks(*up, 4))
        ],
    )


def _widened(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """An axis that ends a little beyond its values."""
    if logarithmic:
        return low / 1.1, high * 1.1
    room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return (0.0 if 0 <= low < 0.4 * high else low - room), high + room


def _place(low: float, high: float, logarithmic: bool) -> Callable[[np.ndarray | float], np.ndarray]:
    """Where a value lies along an axis: 0 at its beginning, 1 at its end."""
    if logarithmic:
        return lambda value: np.log(np.asarray(value) / low) / math.log(high / low)
    return lambda value: (np.asarray(value) - low) / (high - low)


def _line(
    curve: RunCurve, place_x: Callable[[np.ndarray], np.ndarray], place_y: Callable[[np.ndarray], np.ndarray]
) -> DrawnLine:
    def placed(points: Points) -> list[tuple[float, float]]:
        xs, ys = WIDTH * place_x(points.steps), HEIGHT * (1 - place_y(points.values))
        return list(zip(xs.round(2).tolist(), ys.round(2).tolist(), strict=True))

    found = curve.points
    drawn = placed(found.at_most(MOST_POINTS))
    noisy = len(found) >= NOISY and not curve.evaluated and _wavers(found)
    return DrawnLine(
        curve,
        _polyline(drawn),
        _polyline(placed(found.means(MEANS))) if noisy else "",
        drawn if len(drawn) <= FEW else [],
        facts(found),
    )


def _wavers(points: Points) -> bool:
    """Whether a curve goes up and down more often than a schedule does."""
    signs = np.sign(np.diff(points.values[:10_000]))
    return bool((signs[1:] * signs[:-1] < 0).mean() > 0.1)


def _polyline(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def facts(points: Points) -> str:
    """The last, the lowest and the highest value of a curve, and where the two are."""
    low, high = int(points.values.argmin()), int(points.values.argmax())
    said = [f"last {short(points.values[-1])}"]
    if low != high:
        said += [
            f"{name} {short(points.values[at])} at step {int(points.steps[at]):,}"
            for name, at in (("lowest", low), ("highest", high))
        ]
    if points.left_out:
        said.append(f"{points.left_out:,} not finite")
    return "; ".join(said)


def short(value: float) -> str:
    """A number for an axis or a line: 12.3k, 0.0042, 3e-05."""
    number = float(value)
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor * (10 if letter == "k" else 1):
            return f"{number / factor:.4g}{letter}"
    return f"{number:.4g}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between two, some `about` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough / 1.2)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive values, at most six; where there are few, twice and five times them
    too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    inside = [tick for tick in found if low <= tick <= high]
    return inside[:: math.ceil(len(inside) / 6)] if inside else [low, high]

"""The table of methods.py's cells, in Markdown."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Result = dict[str, Any]
STUDENT = {
    2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262,
}  # fmt: skip
"""The 97.5 % quantile of Student's t for a mean of so many; of more there is no interval."""


def table(task: str, done: Sequence[Result], methods: Iterable[str]) -> list[str]:
    """A table in Markdown of a task's cells, a line for each of the methods that has some."""
    base = next((line for line in done if line["method"] == "base"), None)
    lora = best_rate([line for line in done if line["method"] == "lora"])
    head = [
        f"| {task} | rate | seeds | loss | to LoRA | general loss | GB | tokens/s | start, s | trained |",
        "|" + "---|" * 10,
    ]
    if base is not None:
        head.append(f"| the base | | | {base['loss']:.3f} | | {base['general_loss']:.3f} | | | | |")
    lines = []
    for method in methods:
        mine = best_rate([line for line in done if line["method"] == method])
        if not mine:
            continue
        own = {line["seed"]: line["loss"] for line in lora}
        apart = [line["loss"] - own[line["seed"]] for line in mine if line["seed"] in own]
        rise = [line["general_loss"] - (base["general_loss"] if base else 0.0) for line in mine]
        numbers = [
            f"{mine[0]['rate']:.2g}", str(len(mine)), with_interval([line["loss"] for line in mine]),
            "" if method == "lora" or not apart else with_interval(apart, sign=True),
            with_interval(rise, sign=base is not None),
            f"{max(line['memory_bytes'] for line in mine) / 1e9:.2f}",
            f"{statistics.median(line['tokens_per_second'] for line in mine):.0f}",
            f"{statistics.median(line['start_seconds'] for line in mine):.1f}", f"{mine[0]['trained']:,}",
        ]  # fmt: skip
        lines.append(f"| {method} | {' | '.join(numbers)} |")
    return [*head, *lines]


def best_rate(lines: Sequence[Result]) -> list[Result]:
    """The cells at the rate that has the lowest loss at the first seed."""
    first = min((line["seed"] for line in lines), default=0)
    rates = {line["rate"]: line["loss"] for line in lines if line["seed"] == first}
    chosen = min(rates, key=lambda rate: rates[rate], default=None)
    return [line for line in lines if line["rate"] == chosen]


def with_interval(values: Sequence[float], *, sign: bool = False) -> str:
    """The mean, and half the width of its 95 % interval."""
    mean = statistics.mean(values)
    shown = f"{mean:+.3f}" if sign else f"{mean:.3f}"
    if len(values) not in STUDENT:
        return shown
    return f"{shown} ± {STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5:.3f}"

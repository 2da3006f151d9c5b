"""What was logged, a metric at a time, and fewer points of it that show the same.

Shapes: N points of a metric.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from data_prep.disk import open_regular
from finetune.errors import CheckpointError
from finetune.runs.folder import whole_entries

MOST = 1e100
"""A larger number is shown as little as infinity is."""
CHUNK_BYTES = 2**20
"""Lines that are read at once: a million of them one by one would take twice as long."""


@dataclass(frozen=True)
class Points:
    """One metric of one run, in the order of its steps."""

    steps: np.ndarray
    """(N), whole numbers."""
    values: np.ndarray
    """(N), finite."""
    left_out: int = 0
    """How many values were no finite numbers."""

    def __len__(self) -> int:
        return len(self.steps)

    def at_most(self, most: int) -> "Points":
        """The same in at most `most` points: of each of most / 2 stretches of steps the lowest and the
        highest, so that no spike is lost."""
        if len(self) <= most:
            return self
        chosen = np.unique(
            [
                at
                for begin, end in self._stretches(most // 2)
                for at in (
                    begin + int(self.values[begin:end].argmin()),
                    begin + int(self.values[begin:end].argmax()),
                )
            ]
        )
        return Points(self.steps[chosen], self.values[chosen], self.left_out)

    def means(self, count: int) -> "Points":
        """The mean of each of `count` stretches of steps, at its middle."""
        stretches = list(self._stretches(count))
        steps = np.array([(self.steps[begin] + self.steps[end - 1]) // 2 for begin, end in stretches])
        values = np.array([self.values[begin:end].mean() for begin, end in stretches])
        return Points(steps, values, self.left_out)

    def _stretches(self, count: int) -> Iterator[tuple[int, int]]:
        """Where each of `count` equally long stretches of steps begins and ends, of those with any point."""
        edges = np.linspace(self.steps[0], self.steps[-1] + 1, count + 1)
        bounds = np.searchsorted(self.steps, edges)
        return ((int(a), int(b)) for a, b in pairwise(bounds) if a < b)


def read_points(path: Path) -> dict[str, Points]:
    """The metrics of a metrics.jsonl; a last line that was cut short is left out.

    Raises CheckpointError where it is damaged, OSError where it is no file or can't be read.
    """
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    lines = 0
    for entries in _entries(path):
        try:
            for name, steps, values in _columns(entries):
                found.setdefault(name, []).append((steps, values))
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            raise CheckpointError(
                f"{path} is damaged in one of its lines {lines + 1:,} to {lines + len(entries):,}: expected "
                "numbers by their names, and a step."
            ) from None
        lines += len(entries)
    return {name: _points(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in found.items()}


def _columns(entries: list[Any]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each metric's name, steps and values; None, which JSON has for what is not finite, is NaN."""
    everywhere = [entry["step"] for entry in entries]
    for name in dict.fromkeys(chain.from_iterable(entries)):
        values = [entry[name] for entry in entries if name in entry]
        steps = everywhere
        if len(values) < len(entries):
            steps = [entry["step"] for entry in entries if name in entry]
        if not {*map(type, steps)} <= {int} or not {*map(type, values)} <= {int, float, NoneType}:
            raise TypeError(name)
        if name != "step":
            yield name, np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def _points(steps: np.ndarray, values: np.ndarray) -> Points:
    finite = np.abs(values) < MOST
    order = np.argsort(steps[finite], kind="stable")
    return Points(steps[finite][order], values[finite][order], int((~finite).sum()))


def _entries(path: Path) -> Iterator[list[Any]]:
    """The lines' values, many at a time."""
    read = 0
    with open_regular(path) as file:
        while lines := file.readlines(CHUNK_BYTES):
            try:
                several = json.loads(b"[" + b",".join(lines) + b"]")
            except (ValueError, RecursionError):
                break
            if len(several) != len(lines):
                break
            yield several
            read += len(lines)
        else:
            return
    # One of these lines is damaged, or cut short: which, and what becomes of it, is said there.
    yield list(islice(whole_entries(path), read, None))

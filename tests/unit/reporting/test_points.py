"""What was logged, in fewer points that show the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import CheckpointError
from finetune.reporting.charts import log_ticks, ticks
from finetune.reporting.points import Points, read_points
from finetune.runs.folder import RunFolder
from finetune.runs.plot import read_metrics

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)
BETWEEN = st.tuples(st.floats(1e-6, 1e6), st.floats(1.01, 1e6)).map(lambda pair: (pair[0], pair[0] * pair[1]))


def points_of(values: list[float]) -> Points:
    return Points(np.arange(1, len(values) + 1), np.array(values))


@given(VALUES, st.integers(2, 40))
def test_fewer_points_keep_the_lowest_and_the_highest(values: list[float], most: int) -> None:
    """They are points that were logged, in their order, at most so many, with both extremes among them."""
    whole = points_of(values)
    found = whole.at_most(most)
    assert len(found) <= max(most, 2)
    assert [values[step - 1] for step in found.steps] == found.values.tolist()
    assert (np.diff(found.steps) > 0).all()
    assert {min(values), max(values)} <= set(found.values.tolist())


@given(VALUES, st.integers(1, 40))
def test_means_lie_between_the_extremes(values: list[float], count: int) -> None:
    """The mean of each stretch is at one of its steps, and between the lowest and the highest value."""
    found = points_of(values).means(count)
    assert 1 <= len(found) <= count
    assert found.steps.min() >= 1
    assert found.steps.max() <= len(values)
    room = 1e-9 * max(map(abs, values))
    assert found.values.min() >= min(values) - room
    assert found.values.max() <= max(values) + room


@given(BETWEEN)
def test_ticks_are_between_the_ends(ends: tuple[float, float]) -> None:
    """An axis has two to ten labels, none of them beyond its ends, on either scale."""
    for found in (ticks(*ends, 4), log_ticks(*ends)):
        assert 1 <= len(found) <= 10
        assert ends[0] * (1 - 1e-6) <= min(found)
        assert max(found) <= ends[1] * (1 + 1e-6)


def written(folder: Path, *lines: object) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_the_same_is_read_as_for_plots(tmp_path: Path) -> None:
    """Metrics by name, a step of each, in which not all are logged; what is not finite is counted."""
    path = written(
        tmp_path,
        {"step": 0, "eval/loss": 3.0},
        {"step": 1, "train/loss": 2.0, "train/gradient_norm": None},
        {"step": 2, "train/loss": 1.0, "train/gradient_norm": 4, "eval/loss": 2.5},
    )
    found = read_points(path)
    assert {name: (one.steps.tolist(), one.values.tolist()) for name, one in found.items()} == {
        name: ([line["step"] for line in lines], [line[name] for line in lines])
        for name in ("eval/loss", "train/loss", "train/gradient_norm")
        if (lines := [line for line in read_metrics(RunFolder(tmp_path)) if line.get(name) is not None])
    }
    assert found["train/gradient_norm"].left_out == 1


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    """A run that is killed while it logs still has its curves."""
    path = written(tmp_path, {"step": 1, "train/loss": 2.0})
    path.write_text(path.read_text() + '{"step": 2, "tra')
    assert read_points(path)["train/loss"].steps.tolist() == [1]


@pytest.mark.parametrize(
    "line", ['{"step": 1', "5", '{"train/loss": 1.0}', '{"step": 1, "train/loss": "high"}', '{"step": true}']
)
def test_a_damaged_line_is_refused(line: str, tmp_path: Path) -> None:
    """The message names the file and where in it."""
    path = written(tmp_path, {"step": 1, "train/loss": 2.0}, line, {"step": 3, "train/loss": 1.0})
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl.*damaged"):
        read_points(path)

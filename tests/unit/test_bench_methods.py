"""The table of benchmarks/methods.py, and how its cells are found again."""

import json
from pathlib import Path
from typing import Any

import pytest

import finetune
from benchmarks.methods import METHODS, Cell, known, read, recipe_of
from benchmarks.methods_table import best_rate, table, with_interval

LINE = {
    "task": "orders", "steps": 30, "overrides": "", "general_loss": 3.5, "memory_bytes": 1e9, "trained": 10,
    "tokens_per_second": 100.0, "start_seconds": 0.0,
}  # fmt: skip


def line(method: str, rate: float, seed: int, loss: float) -> dict[str, Any]:
    return LINE | {"method": method, "rate": rate, "seed": seed, "loss": loss}


def test_a_cell_that_is_there_is_known_and_a_line_that_was_cut_off_is_none(tmp_path: Path) -> None:
    """Whatever else its line has; another seed, or other steps, are another cell."""
    file = tmp_path / "cells.jsonl"
    file.write_text(json.dumps(line("lora", 1e-3, 0, 0.5)) + '\n{"task": "ord')
    done, cell = read(file), Cell("orders", "lora", 1e-3, 0, 30, "")
    assert len(done) == 1
    assert known(done, cell)
    assert not known(done, Cell("orders", "lora", 1e-3, 1, 30, ""))
    assert not known(done, Cell("orders", "lora", 1e-3, 0, 60, ""))


def test_the_first_seed_chooses_the_rate() -> None:
    """Other seeds have no say, so that the loss that is shown is not the lowest of many."""
    lines = [line("eva", rate, seed, loss) for rate, seed, loss in ((1, 0, 0.5), (4, 0, 0.4), (1, 1, 0.1))]
    assert best_rate(lines) == [lines[1]]
    assert best_rate([]) == []


def test_intervals_are_student_s() -> None:
    """Of 1, 2 and 3 the standard error is 1 / sqrt(3), and t for three values 4.303."""
    assert with_interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert with_interval([1.0], sign=True) == "+1.000"


def test_the_table_has_differences_to_lora_s_loss_with_the_same_seed() -> None:
    """And no line for methods without a cell."""
    done = [line("lora", 1, seed, 0.5 + seed) for seed in (0, 1)]
    done += [line("eva", 1, seed, 0.4 + seed) for seed in (0, 1)]
    *_, lora, eva = table("orders", done, METHODS)
    assert len(table("orders", done, METHODS)) == 4
    assert lora.startswith("| lora | 1 | 2 | 1.000 ± 6.353 |  |")
    assert eva.startswith("| eva | 1 | 2 | 0.900 ± 6.353 | -0.100 ± 0.000 |")


def test_lora_is_what_the_others_are_one_factor_away_from() -> None:
    """It has no change of its own."""
    assert METHODS["lora"].changes == {}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_recipe(method: str, tmp_path: Path) -> None:
    """That passes its check."""
    cell = Cell("orders", method, 1e-3, 5, 30, "")
    loaded = finetune.load_recipe(recipe_of(cell, tmp_path, tmp_path)).recipe
    assert (loaded.train.seed, loaded.train.max_steps) == (5, 30)

"""By how much one answer is better: what a reward model learns, and nothing else reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.data import prepare_data
from finetune.recipe.schema import Recipe
from tests.support.recipes import MakeRecipe


@pytest.fixture
def margins(pairs: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """pairs whose rows have these margins, no row held out."""

    def make(objective: str, *values: Any, **source: Any) -> Recipe:
        rows = [
            {"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": f"no {n}"}
            | ({} if value is None else {"margin": value})
            for n, value in enumerate(values)
        ]
        path = tmp_path / "margins.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": [{"path": str(path), "format": "preference", **source}], "evaluation": None}
        return pairs(objective={"kind": objective}, data=data, train={"evaluate_every": None})

    return make


def test_a_reward_model_learns_a_pairs_margin(margins: MakeRecipe, tiny_base: Path) -> None:
    """Beside the chosen answer; 0 where a row has none."""
    data = prepare_data(margins("reward", 1, 0.5, None), load_tokenizer(tiny_base))
    assert [document.targets for document in data.train] == [(1.0,), (0.0,), (0.5,), (0.0,), (0.0,), (0.0,)]


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_others_refuse_margins(margins: MakeRecipe, tiny_base: Path, kind: str) -> None:
    """Unless the column is left out."""
    tokenizer = load_tokenizer(tiny_base)
    with pytest.raises(DataError, match="margin is read by objective reward alone"):
        prepare_data(margins(kind, 1.0, 2.0), tokenizer)
    left_out = prepare_data(margins(kind, 1.0, 2.0, ignore_columns=["margin"]), tokenizer)
    assert len(left_out.train) == 4


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "margin is -1: the chosen answer is the better one"), ("far", "a finite number was expected")],
)
def test_a_margin_is_a_number(margins: MakeRecipe, tiny_base: Path, value: Any, message: str) -> None:
    """0 or more."""
    with pytest.raises(DataError, match=message):
        prepare_data(margins("reward", value), load_tokenizer(tiny_base))

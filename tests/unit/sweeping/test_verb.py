"""finetune sweep and finetune runs list --sweep, as they are typed."""

from pathlib import Path

import pytest

from tests.support.cli import FinetuneHere
from tests.unit.sweeping.sweeps import write_recipe


@pytest.mark.torch
def test_the_verb_tells_the_best_and_what_to_type_next(
    tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """A table, the best recipe, and the list of the trials, which shows what was varied."""
    write_recipe(tmp_path, tiny_base, {"trials": 2}, train={"max_steps": 1})
    told = finetune_here("sweep", "sweep.yaml").stdout
    assert "2 trials (2 finished)" in told
    assert f"train    finetune train {tmp_path}/runs/sweep/best.yaml" in told
    listed = finetune_here("runs", "list", "--sweep", "sweep").lines
    assert listed[0].split() == [
        "name",
        "status",
        "train.learning_rate",
        "evaluation_loss",
        "steps",
        "tokens",
    ]
    assert [line.split()[:2] for line in listed[1:]] == [["trial-001", "finished"], ["trial-002", "finished"]]
    found = finetune_here("sweep", "sweep.yaml", "--json").json
    assert [row["status"] for row in found["trials"]] == ["finished", "finished"]
    assert found["best"][0] in (1, 2)


def test_a_sweep_that_is_not_there_is_named(tmp_path: Path, finetune_here: FinetuneHere) -> None:
    """With those that are."""
    (tmp_path / "runs" / "rates").mkdir(parents=True)
    (tmp_path / "runs" / "rates" / "sweep.json").write_text("{}")
    assert (
        "has no sweep 'rate'; did you mean rates?"
        in finetune_here("runs", "list", "--sweep", "rate", code=2).stderr
    )
    assert "sweep.json is damaged" in finetune_here("runs", "list", "--sweep", "rates", code=2).stderr


def test_a_recipe_without_a_space_ends_with_2(finetune_here: FinetuneHere) -> None:
    """One message."""
    assert "has no section sweep" in finetune_here("sweep", "quickstart", code=2).stderr

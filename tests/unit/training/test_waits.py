"""A step of the real loop waits for the device a few times, whatever it is made of."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launches import accelerate_launch
from tests.support.preferences import write_pairs
from tests.support.recipes import MakeRecipe
from tests.support.waits import reads_of_a_step

TRAIN: dict[str, Any] = {
    "max_steps": 4, "micro_batch_size": 4, "optimizer": "adamw_torch_fused", "precision": "fp32",
    "save_every": "never",
}  # fmt: skip


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"pack_length_tokens": 256}},
        {"train": {"neftune_alpha": 5.0}},
        {"objective": {"kind": "orpo", "learns_prompt": True}},
        {"objective": {"kind": "orpo", "learns_prompt": True}, "data": {"pack_length_tokens": 256}},
    ],
    ids=["padded", "packed", "noise", "pairs", "packed pairs"],
)
def test_a_step_waits_twice(sections: dict[str, Any], make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Of two micro-batches: for the norm with the losses, and for the loss that is logged."""
    rows = {"path": write_pairs(tmp_path / "pairs.jsonl"), "format": "preference"}
    data = {"train": [rows]} if "objective" in sections else {}
    changed = {"train": TRAIN | sections.get("train", {}), "data": data | sections.get("data", {})}
    recipe = make_recipe(**sections | changed)
    found = reads_of_a_step(recipe)
    assert 0 < sum(found.values()) <= 2, str(found)


@pytest.mark.long
def test_a_step_of_several_processes_waits_four_times(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """For the step's counts and for a request to stop, too."""
    recipe = make_recipe(train=TRAIN | {"micro_batch_size": 2})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    command = [*accelerate_launch("ddp"), "-m", "tests.support.waits", "recipe.json"]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    # Two processes may write on one line.
    counts = [json.loads(found) for found in re.findall(r"\{[^{}]*\}", done.stdout)]
    assert len(counts) == 2, done.stderr
    assert all(0 < sum(found.values()) <= 4 for found in counts), str(counts)

"""Training commands in shell scripts: what a shell would hand over is what is read."""

from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.recipe.load import load_recipe
from tests.unit.conversion.configurations import value_at

SWIFT = "swift sft --model a/b --use_hf true --tuner_type lora"
LITGPT = "--data JSON --data.json_path rows.json --data.val_split_fraction 0.2"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f"{SWIFT} --dataset c/d#50 'e/f#7' --lora_rank 4 # and so on", {"adapter.rank": 4, "data.train.0.sample_rows": 50}),
        (f"{SWIFT} \\\n  --dataset c/d#50 \\\n  --lora_rank 4\n", {"adapter.rank": 4, "data.train.0.sample_rows": 50}),
        (f"{SWIFT} --dataset c/d --system 'say # twice'", {"data.system": "say # twice"}),
        (f"{SWIFT} --dataset c/d", {"train.global_batch_size": 16}),
        (f"NPROC_PER_NODE=4 {SWIFT} --dataset c/d", {"train.global_batch_size": 16}),
        (f"NPROC_PER_NODE=4 {SWIFT} --dataset c/d --gradient_accumulation_steps 2", {"train.global_batch_size": 8}),
        (f"NNODES=2 NPROC_PER_NODE=4 {SWIFT} --dataset c/d --gradient_accumulation_steps 2", {"train.global_batch_size": 16}),
        (
            "accelerate launch --num_processes=8 sft.py --model_name_or_path a/b --dataset_name c/d",
            {"train.global_batch_size": 64},
        ),
        (
            "torchrun --nproc_per_node 2 repo/swift/cli/sft.py --model a/b --dataset c/d --use_hf true",
            {"data.train.0.dataset": "c/d"},
        ),
        (
            f"litgpt finetune_lora a/b {LITGPT} --train.epochs 2",
            {"model.base": "a/b", "adapter.method": "lora", "data.evaluation.fraction": 0.2, "train.epochs": 2},
        ),
        (
            f"n=4\nNPROC_PER_NODE=$n\n{SWIFT} --dataset c/d --gradient_accumulation_steps $(expr 32 / $n)",
            {"train.global_batch_size": 32},
        ),
        (f"n=4\n{SWIFT} --dataset c/d --gradient_accumulation_steps $((32 / n))", {"train.global_batch_size": 8}),
        (f"n=4\n{SWIFT} --dataset c/d --gradient_accumulation_steps $(expr 32 / $n / 2)", {"train.global_batch_size": 4}),
        (f"{SWIFT} --dataset c/d --gradient_accumulation_steps $(expr 3 \\* 2)", {"train.global_batch_size": 6}),
        (f"litgpt finetune_full a/b {LITGPT}", {"adapter.method": "full"}),
    ],
)  # fmt: skip
def test_a_command_is_read_as_a_shell_reads_it(
    script: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A # inside a word begins no comment, defaults count the processes, and words of their own are read."""
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text("[]")
    Path("a.sh").write_text(script)
    finetune.convert("a.sh", output="recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe.model_dump(mode="json")
    assert {path: value_at(recipe, path) for path in expected} == expected


def test_processes_that_are_asked_for_go_before_those_of_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--processes is never ignored."""
    monkeypatch.chdir(tmp_path)
    Path("a.sh").write_text(f"NPROC_PER_NODE=4 {SWIFT} --dataset c/d --gradient_accumulation_steps 2")
    assert "global_batch_size: 16 " in finetune.convert("a.sh", processes=8).recipe

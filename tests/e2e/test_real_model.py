"""The main job on the real SmolLM2-135M, from its wheel on the package index: train, merge, generate,
evaluate."""

import json
from pathlib import Path

import pytest

from tests.support.cli import Finetune, FinetuneHere

RECIPE = """\
extends: {quickstart}
data:
  train:
    - {{generated: orders, split: train, rows: 64, format: messages}}
  evaluation:
    sources:
      - {{generated: orders, split: held_out, rows: 4, format: messages}}
train: {{global_batch_size: 4, micro_batch_size: 4, max_steps: {steps}, epochs: null}}
adapter: {{method: {method}}}
evaluate: {{max_new_tokens: 16}}
output: {{folder: runs, name: real}}
"""
ROUNDING = {"bfloat16": ("--rounding", "nearest")}
"""The quickstart, among the long tests, calibrates."""
QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("method", "steps", "dtype"),
    [("lora", 6, "bfloat16"), pytest.param("qlora", 3, "float32", marks=pytest.mark.long)],
)
def test_the_real_model_learns_merges_and_answers(
    finetune: Finetune, finetune_here: FinetuneHere, tmp_path: Path, method: str, steps: int, dtype: str
) -> None:
    """After a few steps the held-out loss is lower, the merge is verified, the run scores as in training, and
    the merged model answers. (After 3 steps the update is too small for bf16 numbers; the verification says
    so, hence float32.)
    """
    (tmp_path / "real.yaml").write_text(RECIPE.format(quickstart=QUICKSTART, method=method, steps=steps))
    summary = json.loads(finetune("train", "real.yaml", "--json").stdout)
    assert summary["evaluation_loss"] < summary["evaluation_loss_before"]
    assert summary["trainable_parameters"] == 4_884_480
    run = summary["run"]

    report = json.loads(
        finetune_here(
            "merge", run, "--output", "merged", "--dtype", dtype, *ROUNDING.get(dtype, ()), "--json"
        ).stdout
    )
    assert report["verification"]["holds"] is True
    answer = finetune_here(
        "generate", "merged", "--prompt", "What is the capital of France?", "--max-new-tokens", "12"
    ).stdout
    assert answer.strip()
    scores = json.loads(finetune_here("evaluate", run, "real.yaml", "--json").stdout)
    assert scores["metrics"]["loss"]["value"] == pytest.approx(summary["evaluation_loss"], abs=0.02)


@pytest.mark.long
def test_the_quickstart_learns_its_task(finetune: Finetune) -> None:
    """The base scores near zero on held-out orders; the merged model at least 0.80, on at most 30,000
    training tokens."""
    result = json.loads(finetune("quickstart", "--json").stdout)
    assert result["exact_match_before"] <= 0.05
    assert result["exact_match_after"] >= 0.80
    assert result["tokens"] <= 30_000
    assert result["verification"]["holds"] is True

"""Runs whose base multiplies in FP8: both final figures, and what is refused before anything loads."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.api import evaluate, merge
from finetune.cli.train import closing_lines
from finetune.errors import ModelError
from finetune.runs.compare import UNROUNDED_LOSS
from finetune.training import run
from finetune.training.inputs import build_inputs
from tests.support.processes import EXACT
from tests.support.recipes import MakeRecipe, found

FP8: dict[str, Any] = {
    "train": EXACT | {"base_arithmetic": "fp8", "max_steps": 4, "save_every": 4},
    "data": {"evaluation": {"rows": 8}},
}


def test_the_final_loss_is_the_merged_models(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A run's last evaluation has the base in FP8; the final figure beside it is what evaluating the merged
    model finds."""
    folder, summary = run.start(make_recipe(**FP8), name="run", command="finetune train test")
    merge(folder.path, output=tmp_path / "merged")
    recipe = make_recipe(**FP8, evaluate={"metrics": ["loss"]}).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    merged = evaluate(tmp_path / "merged", tmp_path / "recipe.yaml").values["loss"]
    assert summary[UNROUNDED_LOSS] == pytest.approx(merged, rel=1e-5)
    assert 1e-5 < abs(summary["evaluation_loss"] / summary[UNROUNDED_LOSS] - 1) < 2e-2
    told = "\n".join(closing_lines(folder.path, summary))
    assert f"{summary[UNROUNDED_LOSS]:.4f} with it as it was loaded" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {base_arithmetic: fp8}", None),
        ("{train: {base_arithmetic: fp8}, adapter: {method: full}}", "fp8 is for a base that is frozen"),
        ("{train: {base_arithmetic: fp8}, adapter: {method: qlora}}", "and qlora's are in nf4-double"),
        ("{train: {base_arithmetic: fp8}, adapter: {use_dora: true}}", None),
        ("train: {base_arithmetic: fp8, precision: fp16}", "train.precision is fp16; set it to bf16"),
        (
            "{train: {base_arithmetic: fp8}, objective: {kind: dpo, reference: runs/one}, data: {train: [{path: a, "
            "format: preference}]}}",
            "the adapter that objective.reference names",
        ),
    ],
)
def test_what_fp8_can_not_be_with_is_refused(text: str, message: str | None) -> None:
    """At its place in the recipe."""
    problems = [problem for problem in found(text) if problem.startswith("train.base_arithmetic")]
    assert len(problems) == (message is not None)
    assert all(message is not None and message in problem for problem in problems)


@pytest.mark.parametrize("engine", ["fsdp2", "zero2"])
def test_engines_that_take_weights_over_refuse_it(
    engine: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, with one that doesn't."""
    from finetune.engines import registry

    monkeypatch.setattr("finetune.training.inputs.current", lambda: registry.named(engine))
    with pytest.raises(
        ModelError, match=f"{engine} can't be used with train.base_arithmetic: fp8: .* Take ddp"
    ):
        build_inputs(make_recipe(**FP8))

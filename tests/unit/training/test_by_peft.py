"""Adapters that peft's own layers compute: continued, refused where they can't be honoured, and shown elsewhere
(test_adapter_kinds) as whole runs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.engines.registry import ENGINES
from finetune.errors import FinetuneError, ModelError
from finetune.exporting.for_vllm import check_for_vllm
from finetune.planning.job import refuse_without_formula
from finetune.recipe.load import load_recipe
from finetune.recipe.rules.together import problem_of
from finetune.recipe.schema.adapter import PEFT_KEYS
from finetune.runs.folder import RunFolder
from finetune.runs.plot import read_metrics
from finetune.training.inputs import build_inputs
from tests.support.messages import hearing
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe, found

MISS = {"method": "miss", "rank": 4}


@pytest.fixture
def trained(make_recipe: MakeRecipe) -> RunFolder:
    return start(make_recipe(adapter=MISS, train=EXACT | {"max_steps": 2}))


def test_a_run_is_continued_and_exported_where_that_is_possible(
    trained: RunFolder, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Continued it begins at its loss, and says once what isn't fused; what knows LoRA alone refuses it by its
    kind."""
    said: list[str] = []
    one_step = EXACT | {"max_steps": 1}
    with hearing(said.append):
        further = start(
            make_recipe(adapter=MISS | {"continue_from": str(trained.adapter)}, train=one_step), "further"
        )
    before, after = (
        further.read_summary()["evaluation_loss_before"],
        trained.read_summary()["evaluation_loss"],
    )
    assert before == pytest.approx(after, rel=1e-6)
    assert sum("its layers are peft's own, and not fused" in line for line in said) == 1
    for other, message in (
        ({"method": "lora"}, "is of type MISS; expected LORA"),
        (MISS | {"rank": 2}, "r 4, "),
    ):
        with pytest.raises(ModelError, match=message):
            build_inputs(make_recipe(adapter=other | {"continue_from": str(trained.adapter)}))
    for options in ({"format": "vllm"}, {"format": "gguf", "adapter_only": True}):
        with pytest.raises(FinetuneError, match=r"MISS|plain LoRA"):
            finetune.export(trained.path, output=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"method": "oft", "block_size": 24},
            r"block_size is 24, which doesn't divide the \d+ inputs of model",
        ),
        ({"method": "miss", "rank": 1024}, r"adapter\.rank is 1024, and model.* has \d+ inputs"),
    ],
)
def test_sizes_are_not_changed_in_silence(
    make_recipe: MakeRecipe, adapter: dict[str, Any], message: str
) -> None:
    """peft would take another block, or fail later."""
    with pytest.raises(ModelError, match=message):
        build_inputs(make_recipe(adapter=adapter))


@pytest.mark.parametrize("method", sorted(PEFT_KEYS))
def test_what_knows_lora_alone_refuses_the_others(
    make_recipe: MakeRecipe, tmp_path: Path, method: str
) -> None:
    """Engines that cut up, runs that train together, the plan, vLLM; ddp doesn't."""
    recipe = make_recipe(adapter={"method": method})
    refusing = {
        engine.name for engine in ENGINES if f"adapter.method: {method}" in str(engine.problem(recipe))
    }
    assert refusing == {engine.name for engine in ENGINES if engine.takes_over or engine.shards_weights}
    assert "ddp" not in refusing
    assert "is computed by peft" in str(problem_of(recipe))
    with pytest.raises(ModelError, match=f"no formula for adapter.method {method}"):
        refuse_without_formula(recipe)
    (tmp_path / "r.yaml").write_text(
        f"model: {{base: a/b}}\ndata: {{train: [{{generated: orders}}]}}\nadapter: {{method: {method}}}\n"
    )
    with pytest.raises(FinetuneError, match=f"vLLM takes LoRA, and this is {method}"):
        check_for_vllm(load_recipe(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "adapter: {method: miss, alpha: 8}",
            "adapter.alpha  method miss takes continue_from, dropout, exclude_modules, layers, rank, target_modules; remove this, or take lora or loha",
        ),
        ("adapter: {method: vera, exclude_modules: [v_proj]}", "adapter.exclude_modules  method vera takes"),
        ("adapter: {method: oft, quantization: int8}", "adapter.quantization  method oft takes"),
        ("adapter: {block_size: 16}", "adapter.block_size  only method oft rotates blocks; this one is lora"),
        (
            "adapter: {method: loha, target_modules: [lm_head]}",
            "adapter.target_modules  method loha is for the layers",
        ),
        (
            "{adapter: {method: oft}, train: {loraplus_lr_ratio: 4}}",
            "train.loraplus_lr_ratio  was shown with LoRA alone, and adapter.method is oft",
        ),
        (
            "{adapter: {method: oft}, model: {base: a/b, new_tokens: [<a>]}}",
            "model.new_tokens  was shown with LoRA",
        ),
    ],
)
def test_keys_that_a_method_has_no_use_for_are_refused(text: str, problem: str) -> None:
    """With those that it has."""
    (only,) = found(text)
    assert only.startswith(problem)


@pytest.mark.parametrize(
    "adapter",
    [
        MISS,
        {"method": "oft", "block_size": 8},
        {"method": "vera", "rank": 8},
        {"method": "loha", "rank": 4},
    ],
    ids=lambda adapter: str(adapter["method"]),
)
def test_preferences_begin_at_the_reference(
    make_recipe: MakeRecipe, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    """The reference is the base with the adapter off, and the start of one that is continued: before step 1
    each pair's loss is log 2, and then no more."""
    pairs = [{"prompt": f"Say {one}.", "chosen": f"{one}!", "rejected": "never"} for one in range(12)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    sections = {
        "data": {"train": [{"path": str(tmp_path / "pairs.json"), "format": "preference"}]},
        "objective": {"kind": "dpo"},
        "train": EXACT | {"max_steps": 3, "learning_rate": 2e-3},
    }
    first = start(make_recipe(adapter=adapter, **sections))
    further = start(
        make_recipe(adapter=adapter | {"continue_from": str(first.adapter)}, **sections), "further"
    )
    for run in (first, further):
        losses = [entry["train/loss"] for entry in read_metrics(run) if "train/loss" in entry]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
        assert losses[-1] < losses[0]

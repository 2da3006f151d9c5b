"""Whole runs of adapters that start at the base, are on some layers only, or are beside a whole vocabulary."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from finetune.errors import ModelError
from finetune.evaluation.evaluation import Evaluation
from finetune.merging.merge import merge
from finetune.merging.verification.reverify import verify_again
from finetune.models.adapters.adapter import count_parameters
from finetune.models.bases.folder import read_config
from finetune.models.bases.shapes import count_trainable, read_shape
from finetune.models.device import choose_precision
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.runs.target import resolve_target
from finetune.training import build, run
from finetune.training.inputs import build_inputs
from tests.support.models import save_tiny_llama
from tests.support.processes import EXACT, adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe

TRAIN = EXACT | {"max_steps": 4, "save_every": "2 steps", "weight_decay": 0.1}
WHOLE = {
    "adapter": {"rank": 4, "modules_to_save": ["embed_tokens", "lm_head"]},
    "model": {"new_tokens": ["<a>", "<b>"]},
    "train": {"learning_rate": 1e-3},
}
KINDS: dict[str, dict[str, Any]] = {
    "pissa": {"adapter": {"rank": 4, "init": "pissa"}},
    "pissa, fast, rslora": {"adapter": {"rank": 4, "init": "pissa_niter_4", "use_rslora": True}},
    "olora": {"adapter": {"rank": 4, "init": "olora"}},
    "loftq": {"adapter": {"rank": 4, "method": "qlora", "init": "loftq"}},
    "last layer": {"adapter": {"rank": 4, "layers": "last 1"}},
    "first layer, checkpointed": {
        "adapter": {"rank": 4, "layers": [0]}, "train": {"activation_checkpointing": True},
    },
    "ranks and alphas of their own, some left out": {
        "adapter": {
            "rank": 4, "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
            "alpha_pattern": {"mlp.up_proj": 8, "k_proj": 3.5},
            "exclude_modules": ["v_proj", "layers.0.mlp.gate_proj"],
        },
    },
    "eva": {"adapter": {"rank": 4, "init": "eva", "rank_pattern": {"q_proj": 2}}},
    "corda": {"adapter": {"rank": 4, "init": "corda"}},
    "lora_ga": {"adapter": {"rank": 4, "init": "lora_ga", "use_rslora": True}},
    "miss": {"adapter": {"method": "miss", "rank": 4, "exclude_modules": ["v_proj"]}},
    "oft": {"adapter": {"method": "oft", "block_size": 8}},
    "vera": {"adapter": {"method": "vera", "rank": 8}, "train": {"learning_rate": 0.1}},
    "loha": {"adapter": {"method": "loha", "rank": 4, "rank_pattern": {"q_proj": 2}, "layers": "last 1"}},
    "new tokens and all others": WHOLE,
    "the same, tied": WHOLE | {"tied": True},
}  # fmt: skip
BY_PEFT = ("miss", "oft", "vera", "loha")
VARIANTS = {
    "pissa, fast, rslora",
    "olora",
    "last layer",
    "first layer, checkpointed",
    "loha",
    "oft",
    "the same, tied",
}
"""Like another kind but for one thing."""


def recipe_of(kind: str, make_recipe: MakeRecipe, folder: Path) -> Recipe:
    sections = KINDS[kind]
    model: dict[str, Any] = dict(sections.get("model", {}))
    if sections.get("tied"):
        (folder / "base").mkdir(exist_ok=True)
        save_tiny_llama(folder / "base", tie_word_embeddings=True)
        model["base"] = str(folder / "base")
    return make_recipe(
        adapter=sections["adapter"],
        train=TRAIN | sections.get("train", {}),
        **({"model": model} if model else {}),
    )


def resumed(folder: RunFolder) -> dict[str, torch.Tensor]:
    """The result of the run when it goes on from its step 2."""
    for lost in (folder.checkpoints / "checkpoint-4", folder.adapter):
        shutil.rmtree(lost)
    folder.summary_path.unlink()
    run.resume(folder.path, recipe=None)
    return adapter_of(folder)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] if kind in VARIANTS else []) for kind in KINDS]
)
def test_a_run_is_saved_for_its_base_evaluated_merged_and_resumed(
    kind: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """What is evaluated later is the run's own loss, from the adapter and from a checkpoint; the merge into
    the base's files holds, also when it is verified again; a resumed run ends bit for bit alike; what trains
    is the closed form's count."""
    if "loftq" in kind:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    recipe = recipe_of(kind, make_recipe, tmp_path)
    folder = start(recipe)
    summary, before = folder.read_summary(), adapter_of(folder)
    assert summary["weights_changed"]
    assert summary["evaluation_loss"] < summary["evaluation_loss_before"]
    later = Evaluation(recipe, choose_precision("fp32"))
    for name in (folder.adapter, folder.checkpoints / "checkpoint-4"):
        found = later.of(resolve_target(str(name))).values["loss"]
        assert found == pytest.approx(summary["evaluation_loss"], rel=1e-5)
    report = merge(resolve_target(str(folder.path)), tmp_path / "merged")
    assert report.verification is not None
    assert report.verification.holds
    if kind == "loftq":
        assert report.qlora is not None
        assert report.qlora.taken == "nf4"
    again = verify_again(tmp_path / "merged", seed=1)
    by_peft = "it was merged by peft, whole in memory" if recipe.adapter.by_peft else None
    assert (again.failures, again.left_out) == ([], by_peft)
    merged = merge(resolve_target(str(folder.checkpoints / "checkpoint-4")), tmp_path / "of checkpoint")
    assert merged.verification is not None
    assert_equal(
        load_file(tmp_path / "merged" / "model.safetensors"),
        load_file(tmp_path / "of checkpoint" / "model.safetensors"),
    )
    shape = read_shape(read_config(Path(str(recipe.model.base))))
    closed = count_trainable(shape, recipe.adapter, len(recipe.model.new_tokens))
    assert summary["trainable_parameters"] == closed
    assert_equal(resumed(folder), before)


@pytest.mark.parametrize(
    "kind",
    [
        "pissa",
        "olora",
        "lora_ga",
        "last layer",
        "ranks and alphas of their own, some left out",
        "new tokens and all others",
        *BY_PEFT,
    ],
)
def test_plain_peft_on_the_base_answers_as_the_run_did(
    kind: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """peft alone, on the base as it is in its folder, has the logits of the model in training."""
    recipe = recipe_of(kind, make_recipe, tmp_path)
    folder = start(recipe)
    inputs = build_inputs(recipe)
    trained: Any = build.build_model(recipe, inputs)
    read = set_peft_model_state_dict(trained, adapter_of(folder))
    assert not read.unexpected_keys
    plain: Any = AutoModelForCausalLM.from_pretrained(str(recipe.model.base))
    if recipe.model.new_tokens:
        plain.resize_token_embeddings(len(inputs.tokenizer))
    config = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert recipe.adapter.by_peft or (config["init_lora_weights"], config["r"]) == (
        True,
        recipe.adapter.saved_rank,
    )
    alone = PeftModel.from_pretrained(plain, str(folder.adapter)).eval()
    ids = torch.arange(3, len(inputs.tokenizer))[None, -40:]
    expected = trained.eval()(input_ids=ids).logits
    torch.testing.assert_close(alone(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert count_parameters(trained)[0] == folder.read_summary()["trainable_parameters"]


def test_loftq_and_pissa_are_refused_on_a_base_that_is_stored_quantised(
    make_recipe: MakeRecipe, tiny_base: Path, tmp_path: Path
) -> None:
    """The weights before they were quantised are nowhere; the message names the base, before data are
    read."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from finetune.models.quantization import bitsandbytes_config

    base = Path(shutil.copytree(tiny_base, tmp_path / "quantised"))
    config = bitsandbytes_config(torch.float32, "nf4-double")
    AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.float32, quantization_config=config
    ).save_pretrained(base)
    for adapter in ({"method": "qlora", "init": "loftq"}, {"init": "pissa"}):
        with pytest.raises(ModelError, match=r"adapter\.init .* needs the weights as they were .*nf4-double"):
            build_inputs(make_recipe(model={"base": str(base)}, adapter=adapter))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"rank_pattern": {"v_proj": 2}, "exclude_modules": ["v_proj"]}, "rank_pattern: 'v_proj' matches no module that"),
        ({"alpha_pattern": {"layers.7.mlp.up_proj": 2}}, r"'layers\.7\.mlp\.up_proj' matches no module that gets"),
        ({"rank_pattern": {"q_proj": 2, "layers.0.self_attn.q_proj": 3}}, "two of its names match .*0.self_attn.q_proj"),
        ({"layers": [1], "exclude_modules": ["layers.0.mlp.up_proj"]}, "exclude_modules: .* matches no module that gets"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "leaves no module that gets an adapter"),
    ],
)  # fmt: skip
def test_names_that_match_nothing_are_refused(
    make_recipe: MakeRecipe, adapter: dict[str, Any], message: str
) -> None:
    """Of exclusions and patterns, before anything is loaded."""
    with pytest.raises(ModelError, match=message):
        build_inputs(make_recipe(adapter=adapter))


def test_an_adapter_goes_on_with_its_own_ranks_alone(make_recipe: MakeRecipe) -> None:
    """A recipe that continues it must say them as well."""
    own = {"rank": 4, "rank_pattern": {"q_proj": 2}}
    first = start(make_recipe(adapter=own, train=TRAIN))
    further = {"continue_from": str(first.adapter)}
    with pytest.raises(
        ModelError, match=r"was trained with rank_pattern \{'q_proj': 2\}, the recipe asks for \{\}"
    ):
        start(make_recipe(adapter={"rank": 4} | further, train=TRAIN), name="other")
    assert start(make_recipe(adapter=own | further, train=TRAIN), name="same").read_summary()[
        "weights_changed"
    ]

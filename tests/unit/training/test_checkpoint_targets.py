"""A checkpoint named in place of its run, and a base that is no longer what a run was trained on."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import CheckpointError, FinetuneError, ModelError
from finetune.generation.loading import load_ready
from finetune.merging.combine import combine
from finetune.merging.merge import merge
from finetune.merging.targets import choose_more, choose_target
from finetune.models.bases.inspection import describe
from finetune.models.stored_quantization import check_trainable, unquantized_name
from finetune.recipe.schema.adapter import AdapterSection
from finetune.runs.folder import RunFolder
from finetune.runs.target import base_of, resolve_target
from finetune.training.run import start
from tests.support.messages import hearing
from tests.support.recipes import MakeRecipe

STEPS = {
    "max_steps": 2,
    "save_every": 1,
    "keep_checkpoints": 2,
    "global_batch_size": 2,
    "rehearsal": False,
}
TOKENS = torch.arange(3, 43)[None]
NEW = {
    "new_tokens": ["<|call|>", "[LAMP]"],
    "chat_template": "chatml",
    "rope_scaling": {"type": "linear", "factor": 2.0},
}


def run_of(make_recipe: MakeRecipe, **sections: Any) -> RunFolder:
    sections = {"train": STEPS | sections.pop("train", {})} | sections
    recipe = make_recipe(**sections)
    return start(recipe, name="r", command="test").folder


def logits_of(target: Any) -> torch.Tensor:
    model, tokenizer = load_ready(target, dtype=torch.float32)
    ids = torch.cat([TOKENS, torch.tensor([[len(tokenizer) - 1, len(tokenizer) - 2]])], dim=1)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    "sections",
    [
        {"model": NEW, "train": {"precision": "bf16"}},
        {"adapter": {"rank": 4, "method": "qlora"}},
        {"adapter": {"method": "full"}, "model": NEW},
    ],
    ids=["new tokens, template, RoPE", "qlora", "full"],
)
def test_the_last_checkpoint_is_the_run(make_recipe: MakeRecipe, sections: dict[str, Any]) -> None:
    """Taken after the last step, it has the run's logits, tokenizer, template, RoPE scaling and quantisation;
    the one before has its own weights and the same of the rest."""
    if sections.get("adapter", {}).get("method") == "full":
        sections = sections | {"model": {name: value for name, value in NEW.items() if name != "new_tokens"}}
    run = run_of(make_recipe, **sections)
    own = resolve_target(str(run.path))
    before, last = (resolve_target(str(run.checkpoints / f"checkpoint-{step}")) for step in (1, 2))
    assert (last.quantization, last.model.rope_scaling, last.base_sha256) == (
        own.quantization,
        own.model.rope_scaling,
        own.base_sha256,
    )
    assert "at step 2" in last.description
    torch.testing.assert_close(logits_of(last), logits_of(own), rtol=0, atol=1e-6)
    assert not torch.allclose(logits_of(before), logits_of(own), atol=1e-6)
    tokenizers = [load_ready(target, dtype=torch.float32)[1] for target in (own, last)]
    assert len({len(tokenizer) for tokenizer in tokenizers}) == 1
    assert len({str(tokenizer.chat_template) for tokenizer in tokenizers}) == 1
    assert base_of(last).model == base_of(own).model


def test_a_checkpoint_merges_as_its_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The same tensors and config.json, RoPE scaling in it; with new tokens, of which a checkpoint has frozen
    copies."""
    run = run_of(make_recipe, model=NEW, train={"precision": "bf16"})
    for name, target in (("run", run.path), ("checkpoint", run.checkpoints / "checkpoint-2")):
        merge(choose_target(str(target), None), tmp_path / name, check="tensors")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("run", "checkpoint")]
    assert configs[0] == configs[1]
    assert configs[0]["rope_parameters"]["factor"] == 2.0
    own, its = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "checkpoint"))
    assert own.keys() == its.keys()
    assert all(torch.equal(weight, its[name]) for name, weight in own.items())


def test_a_checkpoint_that_is_none_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Without its marker, with other bytes, cut up by an engine, or outside its run: each says what to do."""
    run = run_of(make_recipe)
    checkpoint = run.checkpoints / "checkpoint-2"
    shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match="outside its run"):
        resolve_target(str(tmp_path / "checkpoint-2"))
    with pytest.raises(ModelError, match=r"It holds the checkpoints checkpoint-1, checkpoint-2: name one"):
        resolve_target(str(run.checkpoints))
    weights = checkpoint / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\x00\x00\x00\x00")
    with pytest.raises(CheckpointError, match="differs from what was saved"):
        resolve_target(str(checkpoint))
    save_file(
        {name: weight[:0] for name, weight in load_file(tmp_path / "checkpoint-2" / weights.name).items()},
        weights,
    )
    with pytest.raises(CheckpointError, match="cut up"):
        resolve_target(str(checkpoint))
    weights.unlink()
    with pytest.raises(CheckpointError, match="resume the run"):
        resolve_target(str(checkpoint))
    (checkpoint / "complete.json").unlink()
    with pytest.raises(CheckpointError, match="its whole checkpoints: checkpoint-1"):
        resolve_target(str(checkpoint))


def negate(base: Path) -> None:
    path = base / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.down_proj.weight"] *= -1
    save_file(weights, path, metadata={"format": "pt"})


def test_a_base_that_changed_is_noticed_by_all_that_load_it(
    make_recipe: MakeRecipe, tiny_base: Path, tmp_path: Path
) -> None:
    """Run, checkpoint, moved adapter, combination, comparison with the base say both hashes. --base means
    it."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run = run_of(make_recipe, model={"base": str(base)})
    full = run_of(make_recipe, model={"base": str(base)}, adapter={"method": "full"})
    moved = Path(shutil.copytree(run.adapter, tmp_path / "moved"))
    names = [str(run.path), str(run.checkpoints / "checkpoint-1"), str(moved)]
    targets = [resolve_target(name) for name in names] + [base_of(resolve_target(str(full.path)))]
    for target in targets:
        load_ready(target, dtype=torch.float32)
    negate(base)
    for target in targets:
        with pytest.raises(ModelError, match=r"its SHA-256 was [0-9a-f]{64}, and is [0-9a-f]{64}.*--base"):
            load_ready(target, dtype=torch.float32)
    with pytest.raises(FinetuneError, match="its SHA-256 was"):
        combine([str(run.path), str(moved)], tmp_path / "combined", method="cat", weights=[0.5, 0.5])
    load_ready(resolve_target(str(full.path)), dtype=torch.float32)  # it needs no base
    for name in names:
        load_ready(resolve_target(name, tiny_base), dtype=torch.float32)


def test_a_base_that_moved_is_named_with_base(
    make_recipe: MakeRecipe, tiny_base: Path, tmp_path: Path
) -> None:
    """Where the base was is said with where that is written; with --base the same logits come."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run = run_of(make_recipe, model={"base": str(base)})
    before = logits_of(resolve_target(str(run.path)))
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(
        ModelError, match=rf"the lock of run {run.name}: there is no folder .*name it with --base"
    ):
        load_ready(resolve_target(str(run.path)), dtype=torch.float32)
    assert torch.equal(logits_of(resolve_target(str(run.path), tmp_path / "elsewhere")), before)
    with pytest.raises(ModelError, match="--base is for adapters"):
        resolve_target(str(tmp_path / "elsewhere"), tiny_base)
    with pytest.raises(ModelError, match="--base: there is no folder nowhere at all"):
        resolve_target(str(run.path), "nowhere at all")


def test_further_adapters_are_runs_too(make_recipe: MakeRecipe, tmp_path: Path, tiny_base: Path) -> None:
    """After the first a run, a checkpoint or an adapter may follow; one of another base is refused."""
    run, again = run_of(make_recipe), run_of(make_recipe, train={"seed": 2})
    first = choose_target(str(run.path), None)
    assert choose_more([str(again.path), str(run.checkpoints / "checkpoint-1")], None, first) == [
        again.adapter,
        run.checkpoints / "checkpoint-1",
    ]
    base = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    negate(base)
    other = run_of(make_recipe, model={"base": str(base)})
    with pytest.raises(FinetuneError, match="another base"):
        choose_more([str(other.path)], None, first)


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double", "int8"])
def test_a_base_that_is_stored_quantised_makes_the_run_qlora(
    make_recipe: MakeRecipe, tiny_base: Path, tmp_path: Path, quantization: str
) -> None:
    """With method lora: the lock and the adapter's notes say how, the merge into the 16-bit base too; other
    methods are refused before the data are read."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM

    from finetune.models.quantization import bitsandbytes_config
    from finetune.recipe.lock import read_lock

    base = Path(shutil.copytree(tiny_base, tmp_path / "quantised"))
    config = bitsandbytes_config(torch.float32, quantization)
    AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.float32, quantization_config=config
    ).save_pretrained(base)
    said: list[str] = []
    recipe = make_recipe(model={"base": str(base)}, train=STEPS)
    with hearing(said.append):
        run = start(recipe, name="r", command="test").folder
    assert any(f"stored in {quantization}" in line and "QLoRA" in line for line in said)
    assert read_lock(run.lock_path).base["quantization"] == quantization
    assert describe(recipe.model)["quantization"] == quantization
    moved = Path(shutil.copytree(run.adapter, tmp_path / "moved"))
    target = resolve_target(str(run.path), tiny_base)
    assert target.quantization == resolve_target(str(moved)).quantization == quantization
    stored, emulated = logits_of(resolve_target(str(run.path))), logits_of(target)
    torch.testing.assert_close(emulated, stored, rtol=0, atol=2e-5)
    with pytest.raises(FinetuneError, match=rf"stored quantised \({quantization}\).*--base"):
        merge(resolve_target(str(run.path)), tmp_path / "refused")
    report = merge(target, tmp_path / "merged", check="tensors")
    assert any("NF4" in note or "int8" in note for note in report.notes)
    assert report.qlora is not None
    assert set(report.qlora.scores) == {"16bit", quantization.removesuffix("-double")}
    gone = tmp_path / "gone.json"
    for method in ["full"] + ["qlora"] * (quantization == "int8"):
        with pytest.raises(ModelError, match=r"adapter\.method"):
            start(
                make_recipe(
                    model={"base": str(base)},
                    adapter={"method": method},
                    data={"train": [{"path": str(gone), "format": "alpaca"}]},
                ),
                name="r",
                command="test",
            )


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "fp8"])
def test_other_quantisations_are_refused_by_name(
    make_recipe: MakeRecipe, tiny_base: Path, tmp_path: Path, method: str
) -> None:
    """Before the data are read, with the base to take in their place."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": method, "bits": 4}})
    )
    with pytest.raises(ModelError, match=f"stored quantised with {method}.*unquantised base"):
        run_of(
            make_recipe,
            model={"base": str(base)},
            data={"train": [{"path": str(tmp_path / "gone.json"), "format": "alpaca"}]},
        )


@pytest.mark.parametrize(
    ("name", "noted", "expected"),
    [
        (
            "unsloth/Llama-3.2-1B-Instruct-bnb-4bit",
            None,
            ", by its name probably unsloth/Llama-3.2-1B-Instruct",
        ),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "", ", by its name probably unsloth/Qwen3-8B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", None, ", by its name probably Qwen/Qwen2.5-7B-Instruct"),
        ("someone/Llama-AWQ", "meta-llama/Llama-3.1-8B", ", meta-llama/Llama-3.1-8B by its config.json"),
        ("someone/llama", "/home/someone/llama", ""),
        ("/data/llama-gptq", None, ""),
    ],
)
def test_the_base_that_a_quantised_one_was_made_of_is_named(
    name: str, noted: str | None, expected: str
) -> None:
    """By its config.json, else by its own name; nothing is said where neither says it."""
    config = {"quantization_config": {"quant_method": "gptq"}} | (
        {} if noted is None else {"_name_or_path": noted}
    )
    assert unquantized_name(config, name) == expected
    with pytest.raises(ModelError, match=re.escape(f"that it was made of{expected} (adapter.method: qlora")):
        check_trainable(config, AdapterSection(), name)


@pytest.mark.parametrize(
    ("stored", "adapter", "expected"),
    [
        ({"load_in_8bit": True}, {"method": "qlora", "quantization": "int8"}, None),
        ({"load_in_8bit": True}, {"method": "qlora"}, "a base in NF4, and model.base x is stored in int8"),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            {"method": "qlora", "quantization": "int8"},
            "a base in int8, and model.base x is stored in nf4",
        ),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            {"method": "qlora", "double_quantization": False},
            "double_quantization is false, and model.base x is stored in nf4-double",
        ),
    ],
)
def test_what_a_recipe_asks_of_a_stored_base_is_refused_where_it_is_stored_otherwise(
    stored: dict[str, object], adapter: dict[str, object], expected: str | None
) -> None:
    """The way that is asked for and the one that it is stored in are both named."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    section, config = AdapterSection.model_validate(adapter), {"quantization_config": stored}
    if expected is None:
        assert check_trainable(config, section, "x") == "int8"
        return
    with pytest.raises(ModelError, match=expected):
        check_trainable(config, section, "x")

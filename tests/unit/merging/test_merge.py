"""Adapters made by peft, merged, and compared with what they were merged from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.cli.merge import merge as merge_command
from finetune.errors import CheckFailed, FinetuneError, MergeError, ModelError
from finetune.exporters import safetensors as stream
from finetune.merging import output as output_folder
from finetune.merging.merge import merge
from finetune.merging.strategies import streaming as streamed
from finetune.merging.targets import choose_target
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.adapters import make_adapter, merged_logits, unmerged_logits
from tests.support.models import save_tiny_llama


@pytest.fixture
def base_16bit(tmp_path: Path) -> Path:
    """The tiny base, stored in bf16."""
    folder = tmp_path / "base"
    folder.mkdir()
    save_tiny_llama(folder)
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"use_dora": True},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
        {
            "new_tokens": ("<|order|>", "<|end|>"),
            "trainable_token_indices": {"embed_tokens": [400, 401], "lm_head": [400, 401]},
        },
    ],
    ids=["lora", "rslora", "dora", "modules to save", "embedding and head", "patterns", "new tokens"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_merged_model_is_base_and_adapter(options: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    """For each kind of adapter, plain transformers loads the merged folder and gives base + adapter's
    logits."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, tie_word_embeddings=tied)
    if "trainable_token_indices" in options:
        first = len(load_tokenizer(base))
        rows = [first, first + 1]
        options = options | {
            "trainable_token_indices": {"embed_tokens": rows} | ({} if tied else {"lm_head": rows})
        }
    target = make_adapter(base, tmp_path / "adapter", **options)
    report = merge(target, tmp_path / "merged")
    expected = unmerged_logits(target, len(load_tokenizer(tmp_path / "adapter")))
    found = merged_logits(tmp_path / "merged")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found[..., :300] - merged_logits(base)[..., :300]).abs().max() > 1e-3
    assert report.verification is not None
    assert report.verification.holds
    assert json.loads((tmp_path / "merged" / "verification.json").read_text())["holds"] is True
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_an_update_of_the_embedding_does_not_reach_a_tied_head(tmp_path: Path) -> None:
    """LoRA on the embedding of a tied model merges into the embedding only; the merged model has a head of
    its own."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, tie_word_embeddings=True)
    target = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    merge(target, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    original = AutoModelForCausalLM.from_pretrained(base)
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)
    assert not torch.equal(model.model.embed_tokens.weight, original.model.embed_tokens.weight)


def test_bf16_weights_are_the_float32_merge_rounded_once(base_16bit: Path, tmp_path: Path) -> None:
    """Each stored bf16 number is base + scale * B A in float32, rounded once; peft's safe_merge rounds twice
    and differs."""
    target = make_adapter(base_16bit, tmp_path / "adapter")
    report = merge(target, tmp_path / "merged")
    merged, adapter = (
        load_file(tmp_path / "merged" / "model.safetensors"),
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
    )
    base = load_file(base_16bit / "model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
        expected = (base[f"{name}.weight"].float() + 2.0 * (b @ a)).to(torch.bfloat16)
        assert torch.equal(merged[f"{name}.weight"], expected)
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_16bit, dtype=torch.bfloat16), tmp_path / "adapter"
    )
    twice = peft.merge_and_unload(safe_merge=True).state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(twice, merged["model.layers.0.self_attn.q_proj.weight"])
    assert report.dtype == "bfloat16"
    assert report.tensors is not None
    assert report.tensors.largest_error_ulps <= 0.51
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_folder_is_whole(tiny_base: Path, tmp_path: Path) -> None:
    """Tokenizer, template and generation config are in the folder, and the end of turn ends an answer."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    merge(target, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id == 2
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_weights_are_sharded(tiny_base: Path, tmp_path: Path) -> None:
    """No file is larger than --max-shard-size by more than its header, and the index lists them all."""
    report = merge(make_adapter(tiny_base, tmp_path / "adapter"), tmp_path / "merged", max_shard_size="200KB")
    shards = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert report.files == len(shards) > 1
    assert max(path.stat().st_size for path in shards) < 204_000
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}


def test_an_existing_output_is_never_written_to(tiny_base: Path, tmp_path: Path) -> None:
    """A merge refuses a folder that is there, empty or not, and leaves it alone."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    with pytest.raises(MergeError, match="exists already"):
        merge(target, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_is_left_after_an_interruption(
    error: type[BaseException], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C or a full disk in the middle leaves neither the output nor a partial folder."""
    target = make_adapter(tiny_base, tmp_path / "adapter")

    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(streamed, "check_beside", interrupted)
    with pytest.raises(error):
        merge(target, tmp_path / "out" / "merged")
    assert os.listdir(tmp_path / "out") == []


def test_an_adapter_of_another_width_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A base of another width is one clear error that names both, in one line."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    other = tmp_path / "other"
    other.mkdir()
    save_tiny_llama(other, hidden_size=32)
    with pytest.raises(MergeError, match=r"does not fit the base.*size mismatch") as caught:
        merge(Target(ModelSection(base=str(other)), target.adapter, None, ""), tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_for_another_number_of_layers_is_refused(
    layers: int, tiny_base: Path, tmp_path: Path
) -> None:
    """A base with fewer or more layers than the adapter was made for is refused, though peft would load
    it."""
    target = make_adapter(tiny_base, tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    other = tmp_path / "other"
    other.mkdir()
    save_tiny_llama(other, num_hidden_layers=layers)
    with pytest.raises(MergeError, match="another number of layers"):
        merge(Target(ModelSection(base=str(other)), target.adapter, None, ""), tmp_path / "merged")


def test_a_damaged_adapter_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """NaN in one adapter weight stops the merge and names the module."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][3, 1] = float("nan")
    save_file(weights, path)
    with pytest.raises(MergeError, match=r"model\.layers\.1\.mlp\.up_proj\.lora_B\.weight contains NaN"):
        merge(target, tmp_path / "merged")


def test_an_update_beyond_16_bit_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A sum that float16 can't hold is an error, not an infinity in the file."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base)
    LlamaForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    target = make_adapter(base, tmp_path / "adapter", lora_alpha=4e7)
    with pytest.raises(MergeError, match=r"not finite in torch\.float16"):
        merge(target, tmp_path / "merged")


def test_a_full_disk_is_seen_before_anything_is_written(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little room is refused with both figures, before the model is loaded."""
    import shutil

    target = make_adapter(tiny_base, tmp_path / "adapter")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda _: full)
    with pytest.raises(MergeError, match="GB free"):
        merge(target, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_is_not_the_same_model_fails_its_check(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merged model that is off by one per cent of one matrix ends in OUTPUT.failed with its figures, exit
    code 3."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    honest = stream.bytes_of

    def careless(block: torch.Tensor) -> memoryview:
        return honest(block * 1.01 if block.shape == (64, 128) else block)

    monkeypatch.setattr(stream, "bytes_of", careless)
    with pytest.raises(CheckFailed, match="does not match base \\+ adapter") as caught:
        merge(target, tmp_path / "merged")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "merged").exists()
    figures = json.loads((tmp_path / "merged.failed" / "verification.json").read_text())
    assert figures["holds"] is False
    assert figures["failures"]
    with pytest.raises(MergeError, match="exists already"):
        merge(target, tmp_path / "merged")


def test_other_kinds_of_adapters_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter that isn't LoRA is named by its type."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(FinetuneError, match="IA3"):
        merge(target, tmp_path / "merged")


def test_a_qlora_merge_says_which_base_it_is_merged_into(
    tiny_base: Path, alpaca_file: Path, tmp_path: Path
) -> None:
    """An adapter of a 4-bit run is merged into the base as stored, verified on the run's rows, and the report
    says so."""
    recipe = Recipe.model_validate(
        {
            "model": {"base": str(tiny_base)},
            "adapter": {"method": "qlora", "rank": 4},
            "data": {"train": [{"path": str(alpaca_file), "format": "alpaca"}]},
        }
    )
    made = make_adapter(tiny_base, tmp_path / "adapter")
    report = merge(Target(made.model, made.adapter, recipe, "a run"), tmp_path / "merged")
    assert report.dtype == "float32"
    assert "4-bit NF4" in report.notes[0]
    assert report.verification is not None
    assert report.verification.texts == "the run's data"


@pytest.mark.parametrize("size", ["", "5", "big", "-1GB", "5XB"])
def test_a_shard_size_without_a_unit_is_refused(size: str, tmp_path: Path) -> None:
    """The size is a number and a unit."""
    with pytest.raises(FinetuneError, match="5GB or 500MB"):
        merge(Target(ModelSection(base="/x"), tmp_path, None, ""), tmp_path / "merged", max_shard_size=size)


def test_the_base_can_be_named(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--base replaces the base that the adapter's own config names, even where that is nowhere to be
    found."""
    make_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    merge_command(str(tmp_path / "adapter"), output=tmp_path / "merged", base=tiny_base, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["base"] == str(tiny_base)
    assert report["verification"]["holds"] is True
    assert report["verification"]["texts"] == "built-in texts"


def test_the_command_prints_what_was_measured(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base, output, size and the verification's figures are printed."""
    make_adapter(tiny_base, tmp_path / "adapter")
    merge_command(str(tmp_path / "adapter"), output=tmp_path / "merged", base=tiny_base)
    printed = capsys.readouterr().out
    for part in (
        str(tiny_base),
        str(tmp_path / "merged"),
        "float32",
        "holds, on 8 rows",
        "largest difference",
        "mean KL",
    ):
        assert part in printed


def test_whole_weights_can_not_be_merged(tiny_base: Path) -> None:
    """A model folder has no adapter, and the error says so."""
    with pytest.raises(MergeError, match="no adapter"):
        choose_target(str(tiny_base), None)


def test_a_merge_can_be_stored_in_another_type(tiny_base: Path, tmp_path: Path) -> None:
    """--dtype bfloat16 stores 16-bit weights from a float32 base; an unknown type is refused."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    report = merge(target, tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert report.dtype == "bfloat16"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(MergeError, match="expected one of"):
        merge(target, tmp_path / "other", dtype="int8")


def test_a_base_that_changed_since_training_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A run's adapter isn't merged into a base folder whose content isn't the lock's any more."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    changed = Target(target.model, target.adapter, None, "run x", base_sha256="0" * 64)
    with pytest.raises(ModelError, match="is not what run x was trained on: its SHA-256 was 0000"):
        merge(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()

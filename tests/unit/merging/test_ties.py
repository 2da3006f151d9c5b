"""Heads that are tied, untied, or were tied until an adapter came; new tokens; and files that contradict
their configs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.cli import app as command_line
from finetune.errors import CheckFailed, FinetuneError, MergeError
from finetune.exporters import safetensors as stream
from finetune.merging.merge import merge
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.adapters import make_adapter, merged_logits, unmerged_logits
from tests.support.models import save_tiny_llama


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A base with a tied head."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, tie_word_embeddings=True)
    return base


def same_as_peft(target: Target, merged: Path) -> None:
    """Plain transformers on the merged folder has base + adapter's logits."""
    expected = unmerged_logits(target, 0)
    torch.testing.assert_close(merged_logits(merged)[..., : expected.shape[-1]], expected, rtol=0, atol=1e-5)


def test_a_stored_head_of_its_own_is_kept_though_the_config_ties_it(tied: Path, tmp_path: Path) -> None:
    """transformers doesn't tie a head that is stored and isn't the embedding; nor does the merge."""
    path = tied / "model.safetensors"
    weights = load_file(path)
    torch.manual_seed(5)
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"]) * 0.1
    save_file(weights, path, metadata={"format": "pt"})
    target = make_adapter(tied, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    merge(target, tmp_path / "merged")
    same_as_peft(target, tmp_path / "merged")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head", "q_proj"], "trainable_token_indices": [5, 9]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_what_parts_a_tied_head_is_what_peft_computes(
    options: dict[str, Any], tied: Path, tmp_path: Path
) -> None:
    """An adapter that changes one side leaves the other as peft has it."""
    target = make_adapter(tied, tmp_path / "adapter", **options)
    merge(target, tmp_path / "merged")
    same_as_peft(target, tmp_path / "merged")


def test_a_head_that_gets_free_takes_along_what_came_before(tied: Path, tmp_path: Path) -> None:
    """Trained rows of tokens, then LoRA on the head: at once it is what one merge after the other gives."""
    first = make_adapter(tied, tmp_path / "first", target_modules=["q_proj"], trainable_token_indices=[5, 9])
    second = make_adapter(tied, tmp_path / "second", target_modules=["lm_head"])
    merge(first, tmp_path / "both", more=[tmp_path / "second"])
    merge(first, tmp_path / "once")
    merge(Target(ModelSection(base=str(tmp_path / "once")), second.adapter, None, ""), tmp_path / "twice")
    both, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "twice"))
    assert both.keys() == twice.keys()
    for name in both:
        torch.testing.assert_close(both[name], twice[name], rtol=0, atol=1e-6)


def test_new_tokens_as_peft_saves_them_by_itself(tied: Path, tmp_path: Path) -> None:
    """peft's own save writes a tied head's rows as well: they are the embedding's."""
    tokenizer = load_tokenizer(tied, new_tokens=["<a>", "<b>"])
    model = AutoModelForCausalLM.from_pretrained(tied)
    model.resize_token_embeddings(len(tokenizer))
    rows = [len(tokenizer) - 2, len(tokenizer) - 1]
    config = LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": rows}, task_type="CAUSAL_LM"
    )
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge(Target(ModelSection(base=str(tied)), tmp_path / "adapter", None, ""), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is True
    assert merged.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_tokens_of_an_earlier_adapter_stay(tiny_base: Path, tmp_path: Path) -> None:
    """Two adapters, of which the first brings tokens: the merged tokenizer knows them; contradicting ones are
    refused."""
    count = len(load_tokenizer(tiny_base))
    rows = {"embed_tokens": [count, count + 1], "lm_head": [count, count + 1]}
    first = make_adapter(
        tiny_base, tmp_path / "first", new_tokens=("<a>", "<b>"), trainable_token_indices=rows
    )
    make_adapter(tiny_base, tmp_path / "second", target_modules=["q_proj"])
    merge(first, tmp_path / "merged", more=[tmp_path / "second"], check="tensors")
    assert load_tokenizer(tmp_path / "merged").convert_tokens_to_ids("<b>") == count + 1
    make_adapter(tiny_base, tmp_path / "other", new_tokens=("<c>", "<d>"), trainable_token_indices=rows)
    with pytest.raises(MergeError, match="the adapters' tokenizers disagree"):
        merge(first, tmp_path / "again", more=[tmp_path / "other"])


def test_a_number_that_changed_on_its_way_to_the_disk_fails(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte is read back: one row that isn't what was computed ends in OUTPUT.failed."""
    honest = stream.write_index

    def spoil(folder: Path, places: Any) -> None:
        honest(folder, places)
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(stream, "write_index", spoil)
    with pytest.raises(CheckFailed, match="is not on the disk what was computed"):
        merge(make_adapter(tiny_base, tmp_path / "adapter"), tmp_path / "merged")


def edit(name: str, value: Any) -> Callable[[Path], None]:
    """Changes a value of adapter_config.json."""

    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        config = json.loads(path.read_text())
        config[name] = value
        path.write_text(json.dumps(config))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Changes the adapter's tensors."""

    def write(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return write


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    """One change after the other."""

    def change(adapter: Path) -> None:
        for one in changes:
            one(adapter)

    return change


PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (edit("r", None), "r is None"),
        (edit("r", 4.0), "r is 4.0"),
        (edit("lora_alpha", None), "lora_alpha is None"),
        (edit("target_modules", "(q_proj"), "no regular expression"),
        (edit("rank_pattern", ["q_proj"]), "rank_pattern is"),
        (edit("trainable_token_indices", {"embed_tokens": 5}), "trainable_token_indices"),
        (edit("trainable_token_indices", [5]), "holds no rows for them"),
        (edit("use_dora", True), "use_dora is True"),
        (edit("lora_bias", True), "lora_bias is True"),
        (edit("modules_to_save", ["lm_head"]), "modules_to_save names lm_head"),
        (edit("target_modules", ["q_proj"]), "LoRA on model.layers"),
        (
            both(edit("target_modules", PROJECTIONS), edit("layers_to_transform", [0, 7])),
            "LoRA on model.layers.1",
        ),
        (edit("peft_type", ["LORA"]), "peft_type is"),
        (weights(lambda held: held | {FIRST: torch.tensor(1.0)}), "an A of shape"),
        (weights(lambda held: held | {FIRST: torch.zeros(0, 64)}), "an A of shape"),
        (lambda adapter: (adapter / "adapter_config.json").write_bytes(b"\xff\xfe{"), "is not valid JSON"),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(
                b"\x10\0\0\0\0\0\0\0" + b'{"a": {"b": 1}}  '
            ),
            "damaged",
        ),
    ],
)
def test_an_adapter_that_contradicts_itself_is_one_message(
    spoil: Callable[[Path], None], expected: str, tiny_base: Path, tmp_path: Path
) -> None:
    """Config and weights that can't both be right are refused, whatever is strange about them."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(FinetuneError) as caught:
        merge(target, tmp_path / "merged", check="tensors")
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("content", ["[1]", "{", '{"num_return_sequences": 2}'])
def test_a_generation_config_that_nobody_can_read_is_not_carried_over(
    content: str, tiny_base: Path, tmp_path: Path
) -> None:
    """A model with it would not load: the tokens that end a text are written alone, and it is said."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    target = make_adapter(base, tmp_path / "adapter")
    (base / "generation_config.json").write_text(content)
    report = merge(target, tmp_path / "merged", check="tensors")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == 2
    assert any("generation_config.json is not carried over" in note for note in report.notes)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "config.json",
            {"hidden_act": "no_such"},
            "transformers can't build the model that config.json describes",
        ),
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "vocab": {}, "merges": []}},
            "makes no tokens of plain text",
        ),
    ],
)
def test_what_is_found_when_the_merge_is_checked_is_one_message(
    file: str, changes: dict[str, Any], message: str, tiny_base: Path, tmp_path: Path
) -> None:
    """A model that transformers can't build, or a tokenizer that reads nothing, is refused, and nothing is
    left behind."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    target = make_adapter(base, tmp_path / "adapter")
    for own in (tmp_path / "adapter").glob("tokenizer*"):
        own.unlink()
    (base / file).write_text(json.dumps(json.loads((base / file).read_text()) | changes))
    with pytest.raises(MergeError, match=message):
        merge(target, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_whose_files_do_not_fit_is_one_message(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is written, exit 2."""
    make_adapter(tiny_base, tmp_path / "adapter")
    base = tmp_path / "copy"
    base.mkdir()
    for path in tiny_base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = base / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    words = [
        "merge",
        str(tmp_path / "adapter"),
        "--base",
        str(base),
        "--output",
        str(tmp_path / "out" / "merged"),
    ]
    monkeypatch.setattr("sys.argv", ["finetune", *words])
    assert command_line.run() == 2
    error = capsys.readouterr().err
    assert "describes" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "merged").exists()

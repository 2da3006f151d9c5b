"""What stands beside merged weights, for those who read it by other means than transformers 5; and what is
said of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.cli.merge import lines_of
from finetune.errors import CheckFailed, FinetuneError
from finetune.exporters import Safetensors
from finetune.exporters.base import Description
from finetune.merging.merge import merge
from finetune.merging.verification.reverify import verify_again
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.adapters import make_adapter, merged_logits
from tests.support.messages import hearing
from tests.support.models import CHATML, save_tiny_llama, train_sentencepiece

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

TURNS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture
def pieces(tmp_path: Path) -> list[str]:
    """The pieces of the SentencePiece model that is the only tokenizer of a base."""
    base = tmp_path / "base"
    train_sentencepiece(base)
    model = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    save_tiny_llama(
        base, vocab_size=model.get_piece_size(), eos_token_id=2, bos_token_id=1, pad_token_id=None
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).unlink()
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    return [model.id_to_piece(index) for index in range(model.get_piece_size())]


@pytest.fixture
def slow(pieces: list[str], tmp_path: Path) -> Target:
    """An adapter as transformers 4 saved it beside a slow tokenizer: no tokenizer.json, two turns added, a
    template, an end."""
    base, size = tmp_path / "base", len(pieces)
    rows = {name: [size, size + 1] for name in ("embed_tokens", "lm_head")}
    target = make_adapter(base, tmp_path / "adapter", new_tokens=tuple(TURNS), trainable_token_indices=rows)
    adapter = tmp_path / "adapter"
    for path in adapter.iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()
    (adapter / "tokenizer.model").write_bytes((base / "tokenizer.model").read_bytes())
    (adapter / "added_tokens.json").write_text(
        json.dumps({token: size + index for index, token in enumerate(TURNS)})
    )
    described = {str(size + index): {"content": token, "special": True} for index, token in enumerate(TURNS)}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "eos_token": TURNS[1],
        "chat_template": CHATML,
    }
    (adapter / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": described}))
    return target


def read_as_converters_do(folder: Path) -> list[str]:
    """The tokens by id, from tokenizer.model, added_tokens.json and added_tokens_decoder alone."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokens = {index: model.id_to_piece(index) for index in range(model.get_piece_size())}
    tokens |= {
        index: token for token, index in json.loads((folder / "added_tokens.json").read_text()).items()
    }
    described = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    tokens |= {int(index): token["content"] for index, token in described.items()}
    return [tokens[index] for index in range(json.loads((folder / "config.json").read_text())["vocab_size"])]


def test_a_slow_tokenizer_beside_an_adapter_is_the_one_that_counts(
    slow: Target, pieces: list[str], tmp_path: Path
) -> None:
    """Its tokens, template and end of turn are the merged model's; readers of tokenizer.model find the added
    tokens too."""
    output = tmp_path / "merged"
    merge(slow, output, check="tensors")
    assert read_as_converters_do(output) == [*pieces, *TURNS]
    tokenizer, size = AutoTokenizer.from_pretrained(output), len(pieces)
    assert tokenizer("<|im_start|>hi")["input_ids"][:2] == [1, size]
    assert tokenizer.eos_token_id == size + 1
    assert json.loads((output / "generation_config.json").read_text())["eos_token_id"] == [2, size + 1]
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert asked == "<|im_start|>user\nhi<|im_end|>\n"
    assert merged_logits(output).shape[-1] == size + 2


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_text("{}")], ids=["no file", "no tokens"]
)
def test_added_tokens_that_readers_of_sentencepiece_would_miss_fail(
    spoil: Callable[[Path], object], slow: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """added_tokens.json is part of what is checked, at once and again."""
    merge(slow, tmp_path / "merged", check="tensors")
    spoil(tmp_path / "merged" / "added_tokens.json")
    found = verify_again(tmp_path / "merged", seed=1)
    assert found.changed == ("added_tokens.json",)
    assert any("added_tokens.json does not name the 2 tokens" in failure for failure in found.failures)
    honest = Safetensors.describe

    def careless(self: Safetensors, description: Description, folder: Path) -> None:
        honest(self, description, folder)
        spoil(folder / "added_tokens.json")

    monkeypatch.setattr(Safetensors, "describe", careless)
    with pytest.raises(CheckFailed, match="does not name the 2 tokens"):
        merge(slow, tmp_path / "again", check="tensors")


def test_a_template_beside_an_adapter_is_used_and_half_a_tokenizer_refused(
    tiny_base: Path, tmp_path: Path
) -> None:
    """chat_template.jinja alone goes with the base's tokenizer; a description without its vocabulary is
    nobody's."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    for path in (tmp_path / "adapter").iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()
    template = "{% for message in messages %}[{{ message['content'] }}<|im_end|>{% endfor %}"
    (tmp_path / "adapter" / "chat_template.jinja").write_text(template)
    merge(target, tmp_path / "merged", check="tensors")
    found = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).endswith(
        "[hi<|im_end|>"
    )
    (tmp_path / "adapter" / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    with pytest.raises(DataError, match=r"has tokenizer_config\.json, and lacks the vocabulary"):
        merge(target, tmp_path / "other")


def test_the_base_s_own_words_are_kept(tmp_path: Path) -> None:
    """Its tokenizer's class, and values that nobody knows; nothing of where and how it was read; rope in both
    spellings."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base)
    config = json.loads((base / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    old = {
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "use_cache": True,
        "own_key": [1],
    }
    (base / "config.json").write_text(json.dumps(config | old))
    described = json.loads((base / "tokenizer_config.json").read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "own_key": {"a": 1},
        "is_local": True,
    }  # fmt: skip
    (base / "tokenizer_config.json").write_text(json.dumps(described))
    (base / "generation_config.json").write_text(
        json.dumps({"temperature": 0.9, "do_sample": False, "eos_token_id": 0})
    )
    merge(make_adapter(base, tmp_path / "adapter"), tmp_path / "merged", check="tensors")
    found, written = (
        json.loads((tmp_path / "merged" / name).read_text())
        for name in ("config.json", "tokenizer_config.json")
    )
    assert old.items() <= found.items()
    assert found["rope_parameters"] == {"rope_theta": 500000.0, "rope_type": "default"}
    assert {key: written.get(key) for key in ("tokenizer_class", "add_bos_token", "own_key")} == {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "own_key": {"a": 1},
    }  # fmt: skip
    assert not {"is_local", "local_files_only", "backend", "name_or_path"} & written.keys()
    assert sorted(written["added_tokens_decoder"], key=int) == ["0", "1", "2"]
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert generation == {"temperature": 0.9, "do_sample": False, "eos_token_id": [0, 2], "pad_token_id": 2}


@pytest.mark.parametrize("config", [LoraConfig, LoHaConfig], ids=["streamed", "by peft"])
def test_a_dead_adapter_is_warned_of(config: Callable[..., Any], tiny_base: Path, tmp_path: Path) -> None:
    """Saved before its first step: the report and the card say that nothing was changed; after a step they
    don't."""
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_base), config(target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "dead")
    for name, weight in adapted.named_parameters():
        if "lora_B" in name or "hada_w2_b" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(tmp_path / "alive")
    for name, warnings in (("dead", 1), ("alive", 0)):
        target = Target(ModelSection(base=str(tiny_base)), tmp_path / name, None, "")
        report = merge(target, tmp_path / f"{name}-merged", check="tensors")
        assert (
            sum(label == "warning" and "changes no weight" in text for label, text in lines_of(report))
            == warnings
        )
        assert (tmp_path / f"{name}-merged" / "README.md").read_text().count("changes no weight") == warnings


@pytest.mark.parametrize("kind", ["LORA", "LOHA", "VERA"])
def test_keys_that_peft_does_not_know_are_refused_by_name(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    """A newer peft's key would be left out in silence; what other tools write beside is ignored, and said to
    be."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"peft_version": "9.9.9"}
    said: list[str] = []
    path.write_text(json.dumps(config | {"peft_type": kind, "use_superlora": True, "superlora_factor": 3.0}))
    words = r"superlora_factor \(3\.0\), use_superlora \(True\), which peft .*by peft 9\.9\.9"
    with pytest.raises(FinetuneError, match=words), hearing(said.append):
        merge(target, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert not any("superlora" in line for line in said), "it is not said to be used before it is refused"
    path.write_text(
        json.dumps(config | {"use_superlora": False, "superlora_factor": None, "unsloth_fixed": True})
    )
    report = merge(target, tmp_path / "merged", check="none")
    assert any(note.endswith("ignored in adapter_config.json, where it says nothing of the weights: unsloth_fixed")
               for note in report.notes)  # fmt: skip


@pytest.mark.parametrize(
    "word", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module."]
)
def test_names_of_what_was_around_the_model_are_named(word: str, tiny_base: Path, tmp_path: Path) -> None:
    """torch.compile, activation checkpointing, FSDP, DDP: the message says which word, and that peft reads
    none."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    prefix = "base_model.model."
    if word == "module.":
        held = {word + name: value for name, value in load_file(path).items()}
    else:
        held = {name.replace(prefix, prefix + word): value for name, value in load_file(path).items()}
    save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(FinetuneError, match=rf"has '{word[:-1]}' in the names of its weights"):
        merge(target, tmp_path / "merged")


def test_a_bf16_base_says_its_type_to_both(tmp_path: Path) -> None:
    """dtype for transformers 5, torch_dtype for 4."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base)
    LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    target = make_adapter(base, tmp_path / "adapter")
    merge(
        Target(ModelSection(base=str(base)), target.adapter, None, ""), tmp_path / "merged", check="tensors"
    )
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert len(load_tokenizer(tmp_path / "merged")) == len(load_tokenizer(base))

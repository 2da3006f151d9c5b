"""Tokenizers of each kind become the same tokens in llama.cpp, or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_prep.errors import DataError
from data_prep.tokenizers.tokens import ids_of
from finetune.errors import ExportError
from finetune.exporters.gguf.pre_tokenizers import (
    BY_CASE,
    BY_CASE_CONTRACTED,
    SINGLE_DIGITS,
    UP_TO_3_DIGITS,
)
from finetune.exporting.inputs import read_inputs
from finetune.exporting.llama_cpp.server import running
from finetune.exporting.llama_cpp.texts import PARTS, TEXTS, texts_for
from tests.support.exports import whole, write_gguf
from tests.support.models import CHATML, CORPUS, SHARED, save_tiny_llama, train_sentencepiece

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> Any:
    """As the large families' tokenizers are."""
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


KINDS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "gpt-2": (GPT2, {}, None),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), {}, None),
    "llama-bpe": (split(UP_TO_3_DIGITS), {"ignore_merges": True}, None),
    "dbrx": (split(UP_TO_3_DIGITS), {}, None),
    "qwen2": (split(SINGLE_DIGITS), {}, normalizers.NFC()),
    "tekken": (split(BY_CASE), {"ignore_merges": True}, None),
    "gpt-4o": (split(BY_CASE_CONTRACTED), {}, None),
}
"""llama.cpp's name -> pre-tokenizer, options of the model, normaliser."""


def save_byte_level(folder: Path, pre_tokenizer: Any, options: dict[str, Any], normalizer: Any) -> None:
    """A tokenizer of that kind, trained on texts with digits and several scripts, in a tiny LLaMA's
    folder."""
    texts = [*CORPUS, *PARTS, "I'm 1234567 years, you're 89; WE'LL see: HTTPServer 2026\n\n\tend "] * 3
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    described = json.loads(tokenizer.to_str())
    described["model"] |= options
    made = Tokenizer.from_str(json.dumps(described))
    if normalizer is not None:
        made.normalizer = normalizer
    save_tiny_llama(folder, vocab_size=720)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>"
    )
    fast.add_tokens(["<|tool|>", "added word"])
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def differing(folder: Path, out: Path, pre_tokenizer: str | None = None) -> list[str]:
    """The texts that become other tokens in llama.cpp."""
    inputs = read_inputs(whole(folder))
    texts = texts_for(inputs.parts.tokenizer, pre_tokenizer)
    assert len(texts) == TEXTS
    with running(write_gguf(inputs, out), 64) as llama_cpp:
        return [
            text
            for text in texts
            if llama_cpp.tokens(text) != ids_of(text, inputs.parts.tokenizer, special=True)
        ]


@pytest.mark.parametrize("name", list(KINDS))
def test_each_byte_level_kind_becomes_the_same_tokens(name: str, tmp_path: Path) -> None:
    """200 texts of all scripts, with blanks, digits and special tokens, by llama.cpp's pre-tokenizer of that
    name."""
    pytest.importorskip("xllamacpp")
    save_byte_level(tmp_path / "model", *KINDS[name])
    assert differing(tmp_path / "model", tmp_path / "out", name) == []


@pytest.mark.parametrize("blank", [True, False])
def test_sentencepiece_becomes_the_same_tokens(blank: bool, tmp_path: Path) -> None:
    """By scores, from tokenizer.model alone, with a blank before a text and without."""
    pytest.importorskip("xllamacpp")
    save_tiny_llama(tmp_path / "model", vocab_size=340)
    train_sentencepiece(tmp_path / "model", add_dummy_prefix=blank, pad_id=3)
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "bos_token": "<s>",
                "eos_token": "</s>",
            }
        )
    )
    assert differing(tmp_path / "model", tmp_path / "out") == []


def test_a_published_sentencepiece_model_becomes_the_same_tokens(tmp_path: Path) -> None:
    """That of stories260k."""
    pytest.importorskip("xllamacpp")
    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip("shared models are not here")
    assert differing(folder, tmp_path / "out") == []


def test_a_way_of_splitting_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    """With the steps, as tokenizer.json has them."""
    save_byte_level(tmp_path / "model", split(r"\p{L}+|\p{N}"), {}, None)
    read = read_inputs(whole(tmp_path / "model"))
    with pytest.raises(ExportError, match=r"no pre-tokenizer that is known here.*ignore_merges False"):
        write_gguf(read, tmp_path / "out")


def test_a_change_of_texts_that_llama_cpp_does_not_make_is_refused(tmp_path: Path) -> None:
    """Such as lower case."""
    save_byte_level(tmp_path / "model", GPT2, {}, normalizers.Lowercase())
    read = read_inputs(whole(tmp_path / "model"))
    with pytest.raises(ExportError, match="normalizer Lowercase"):
        write_gguf(read, tmp_path / "out")


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    """GGUF has no such model."""
    save_tiny_llama(tmp_path / "model")
    words = {"<unk>": 0, "hello": 1, "<end>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    read = read_inputs(whole(tmp_path / "model"))
    with pytest.raises(ExportError, match="the tokenizer is a WordLevel one"):
        write_gguf(read, tmp_path / "out")


def test_a_row_beyond_the_tokens_has_no_token_s_name(tmp_path: Path) -> None:
    """llama.cpp reads no file with two of one name."""
    pytest.importorskip("xllamacpp")
    save_tiny_llama(tmp_path / "model", vocab_size=400)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["[PAD390]"])
    tokenizer.save_pretrained(tmp_path / "model")
    assert differing(tmp_path / "model", tmp_path / "out") == []


def test_an_id_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    """With the token: ids may have gaps."""
    save_tiny_llama(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    described = json.loads(path.read_text())
    words = described["model"]["vocab"]
    words[max(words, key=words.get)] += 500
    path.write_text(json.dumps(described))
    with pytest.raises(DataError, match=r"the id 853.*fit into the embedding"):
        read_inputs(whole(tmp_path / "model"))

"""A tokenizer.model without a tokenizer.json, beside SentencePiece's own library."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import CORPUS, SHARED, train_sentencepiece

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

NASTY = [
    "", " ", "   ", "  two  blanks ", " lead", "trail ", "\n", "\n\nx", "a\tb", "A\r\nB",
    "naïve café 😀 नमस्ते", "ﬁ Å ½", "x\u00a0y", "e\u0301", "\u200b\u3000x", "\u2581x", "123 456,7", "<0x41>",
    "<unused>", "a<s b", "日本語。", "ß" * 40, "\ud7ff\ue000",
]  # fmt: skip


def texts() -> list[str]:
    draw = random.Random(7)  # noqa: S311 - texts, not secrets
    drawn = [
        "".join(draw.choice("aeb th \n\té😀0<>▁") for _ in range(draw.randrange(60))) for _ in range(300)
    ]
    return [*NASTY, *CORPUS, *drawn]


LLAMA: dict[str, Any] = {}
OTHERS = {"byte_fallback": False, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}


@pytest.mark.parametrize(
    "options",
    [
        LLAMA,
        OTHERS,
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["<tool>", "##"]},
        OTHERS | {"model_type": "unigram"},
    ],
    ids=["llama", "nfkc", "no prefix", "symbols", "unigram"],
)
def test_the_ids_are_sentencepieces(options: dict[str, Any], tmp_path: Path) -> None:
    """On blanks, line ends, scripts, emoji, pieces as text and 300 drawn texts; and they decode to the same
    text."""
    folder = train_sentencepiece(tmp_path / "model", **options)
    own, ours = (
        sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")),
        load_tokenizer(folder),
    )
    for text in [*texts(), "a <tool> b##c"]:
        ids = own.encode(text)
        assert ours(text, add_special_tokens=False)["input_ids"] == ids, text
        if options in (LLAMA, {"add_dummy_prefix": False}):
            assert ours.decode(ids, skip_special_tokens=False) == own.decode(ids), text


@pytest.mark.skipif(not (SHARED / "models" / "stories260k").is_dir(), reason="shared models are not here")
def test_a_real_llamas_model_gives_the_ids_of_its_tokenizer_json(tmp_path: Path) -> None:
    """TinyStories' 512 pieces: read from tokenizer.model alone and from the tokenizer.json beside it."""
    real = SHARED / "models" / "stories260k"
    shutil.copy(real / "tokenizer.model", tmp_path)
    ours, theirs = load_tokenizer(tmp_path), load_tokenizer(real)
    for text in texts():
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


def test_special_and_added_tokens_keep_their_ids(tmp_path: Path) -> None:
    """As a slow tokenizer of transformers 4 left them: added_tokens.json, added_tokens_decoder, a template,
    its own EOS."""
    folder = train_sentencepiece(tmp_path / "model")
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1, "<|im_start|>": size}))
    described = {
        str(size): {"content": "<|im_start|>", "special": True},
        str(size + 1): {"content": "<|im_end|>", "special": True},
    }
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": "<|im_end|>",
        "add_bos_token": True,
        "chat_template": "{{ 'x' }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": described}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer("<|im_start|>hi<|im_end|>")["input_ids"][1:2] == [size]
    assert tokenizer("hi")["input_ids"][0] == tokenizer.bos_token_id == 1
    assert (tokenizer.eos_token_id, len(tokenizer), tokenizer.chat_template) == (
        size + 1,
        size + 2,
        "{{ 'x' }}",
    )
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert [again(text)["input_ids"] for text in NASTY] == [tokenizer(text)["input_ids"] for text in NASTY]
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 7}))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        DataError, match=f"has the id {size + 7}, but after tokenizer.model it would be {size}"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"IQ== 0\nIg== 1\nIw== 2\n", "is a tiktoken file"),
        (b"", "is a tiktoken file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_another_file_of_that_name_is_said(content: bytes, expected: str, tmp_path: Path) -> None:
    """LLaMA 3's own file, an empty one, a pointer."""
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        load_tokenizer(tmp_path)

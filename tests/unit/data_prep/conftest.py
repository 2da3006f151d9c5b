"""Tokenizers, one of them with every special token that the shipped templates write; rows; the golden masks' conversation."""

# ruff: noqa: S106 - tokens of a vocabulary are no secrets
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.messages import Conversation, Message
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.conftest import save_tiny_tokenizer
from tests.unit.data_prep.rows import LABELLED, OTHER_ROWS, ROWS, write

CORPUS = ["Please send two brass lamps to Ada before Friday.", "Der Himmel ist blau, 3 + 4 = 7; is it?"]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def trained_bpe(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level tokenizer of these texts that knows the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, and no model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(base)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with files of rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, values in {"rows": ROWS, "other": OTHER_ROWS, "labelled": LABELLED}.items():
        write(folder / f"{name}.jsonl", values)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer that adds <s> by itself, as LLaMA's do, pads with </s> and has no template."""
    tokenizer = trained_bpe(CORPUS, 400)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]),
        ]
    )
    folder = tmp_path_factory.mktemp("llama-tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def conversation() -> Conversation:
    """A system message and two turns each; an answer with blanks at its end, and one that isn't ASCII."""
    return Conversation(
        (
            Message("system", "Be brief."),
            Message("user", "What is blue?"),
            Message("assistant", "The sky.\nAnd lamps "),
            Message("user", "And in German?"),
            Message("assistant", "Der Himmel 🙂"),
        )
    )

"""Tokenizers, one of them with every special token that the shipped templates write; rows; the golden masks'
conversation."""

from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from data_prep.messages import Conversation, Message
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import save_tiny_tokenizer, trained_bpe
from tests.unit.data_prep.rows import LABELLED, OTHER_ROWS, ROWS, write
from tests.unit.data_prep.tokenizer_kinds import SPECIAL, UNKNOWN, Load, trained

CORPUS = ["Please send two brass lamps to Ada before Friday.", "Der Himmel ist blau, 3 + 4 = 7; is it?"]


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
    """A folder with a byte-level tokenizer that adds <s> by itself, as LLaMA's do, pads with </s> and has no
    template."""
    tokenizer = trained_bpe(CORPUS, 400)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
            ),
        ]
    )
    folder = tmp_path_factory.mktemp("llama-tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
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


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The tokenizer of a kind, as it is loaded from a folder."""
    made: dict[str, PreTrainedTokenizerFast] = {}

    def loaded(kind: str) -> PreTrainedTokenizerFast:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            unknown: dict[str, str] = {} if kind == "byte-level" else {"unk_token": UNKNOWN}
            fast = PreTrainedTokenizerFast(tokenizer_object=trained(kind), **SPECIAL, **unknown)
            fast.save_pretrained(folder)
            made[kind] = load_tokenizer(folder)
        return made[kind]

    return loaded

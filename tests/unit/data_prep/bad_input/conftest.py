"""The tokenizer that bad input is prepared with."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.tokenizers.tokenizer import load_tokenizer

pytest.register_assert_rewrite("tests.unit.data_prep.bad_input.outcomes")


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the shipped ChatML, which knows tools."""
    return load_tokenizer(tiny_base, chat_template="chatml")

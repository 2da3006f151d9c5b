"""Token ids and masks with real tokenizers, against those that tests/golden/make_masks.py made without
data_prep."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep import Conversation, Message, load_tokenizer, tokenize
from finetune.errors import ModelError
from tests.unit.data_prep.real_tokenizers import real_tokenizer
from tests.unit.data_prep.rows import allowing

FILES = sorted((Path(__file__).resolve().parents[2] / "golden" / "masks").glob("*.json"))
GOLDEN: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES
}
CASES = [
    pytest.param(template, case, id=f"{template}, {case['name']}")
    for template, golden in GOLDEN.items()
    for case in golden["cases"]
]


@pytest.fixture(scope="session")
def real() -> Callable[[str], PreTrainedTokenizerFast]:
    """real(template) is the tokenizer that the template's golden masks were made with; a test skips where it
    can't be had."""

    @cache
    def folder(source: str) -> Path | ModelError:
        try:
            return real_tokenizer(json.loads(source))
        except ModelError as error:
            if "could not be fetched" not in str(error):
                raise
            return error

    @cache
    def load(template: str) -> PreTrainedTokenizerFast:
        found = folder(json.dumps(GOLDEN[template]["tokenizer"]))
        if isinstance(found, ModelError):
            pytest.skip(str(found))
        return load_tokenizer(found, chat_template=template)

    return load


@pytest.mark.parametrize(("template", "case"), CASES)
def test_ids_and_masks_are_the_references(
    template: str, case: dict[str, Any], real: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    """With a real tokenizer, each template gives the reference's token ids, and supervises its answers and
    ends of turn."""
    messages = tuple(Message(turn["role"], turn["content"]) for turn in case["messages"])
    example = Conversation(messages, case["completion_start"])
    for supervise, flags in case["supervised"].items():
        [document] = tokenize([("row 1", example)], real(template), supervise, allowing)
        assert list(document.token_ids) == case["token_ids"]
        assert "".join("01"[flag] for flag in document.supervised) == flags, supervise


def test_golden_masks_cover_the_templates_of_real_models() -> None:
    """Each template that a published model was trained with has golden masks, for each way to supervise."""
    assert set(GOLDEN) == {"chatml", "llama2", "llama3", "mistral", "zephyr"}
    assert all(
        set(case["supervised"]) == {"assistant", "last", "completion", "all"}
        for _, case in (p.values for p in CASES)
    )

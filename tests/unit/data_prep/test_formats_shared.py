"""Every file of the shared small data sets is read in its format."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import FileSource
from data_prep.formats.parser import parser_of
from data_prep.messages import Conversation, PlainText, Preference
from data_prep.sources import Row
from tests.support.models import SHARED

FILES = [
    ("chat/fastchat_dummy_conversation.json", {"format": "sharegpt"}, 500),
    ("chat/lf_glaive_toolcall_en_demo.json", {"format": "sharegpt"}, 300),
    ("chat/lf_v1_sft_demo.jsonl", {"format": "messages"}, 500),
    ("instruct/lf_alpaca_en_demo.json", {"format": "alpaca"}, 999),
    ("instruct/lf_identity.json", {"format": "alpaca"}, 91),
    ("instruct/rasbt_instruction-data.json", {"format": "alpaca"}, 1100),
    ("preference/lf_dpo_en_demo.json", {"format": "preference"}, 300),
    ("pretrain/lf_c4_demo.jsonl", {"format": "text"}, 300),
    ("math/gsm8k_test.jsonl", {"format": "question_answer"}, 1319),
    (
        "code/mbpp.jsonl",
        {"format": "prompt_completion", "columns": {"prompt": "text", "completion": "code"}},
        974,
    ),
    (
        "code/mbpp.jsonl",
        {
            "format": "template",
            "template": {"prompt": "{{ text }}\n{{ test_list | join('\n') }}", "completion": "{{ code }}"},
        },
        974,
    ),
    ("qa/xquad.en.json", {"format": "question_answer"}, 1190),
    (
        "translation/xquad_en-es.jsonl",
        {"format": "translation", "columns": {"source": "en", "target": "es"}},
        1430,
    ),
    ("sentiment/sentence_polarity.jsonl", {"format": "classification"}, 10662),
    ("summarisation/scitldr_A_dev.jsonl", {"format": "summarisation"}, None),
]
AUTO = {
    "chat/fastchat_dummy_conversation.json": "sharegpt",
    "chat/lf_v1_sft_demo.jsonl": "messages",
    "instruct/lf_alpaca_en_demo.json": "alpaca",
    "pretrain/lf_c4_demo.jsonl": "text",
    "math/gsm8k_test.jsonl": "question_answer",
    "qa/xquad.en.json": "question_answer",
    "summarisation/scitldr_A_dev.jsonl": "summarisation",
}


def rows_of(name: str) -> list[Row]:
    path = SHARED / "data" / Path(name)
    if not path.is_file():
        pytest.skip(f"the shared data hold no {name}")
    text = path.read_text(encoding="utf-8")
    values: Any = (
        json.loads(text)
        if path.suffix == ".json"
        else [json.loads(line) for line in text.split("\n") if line]
    )
    listed = values["data"] if isinstance(values, dict) else values
    return [Row(f"{path.name} row {n}", row) for n, row in enumerate(listed, start=1)]


@pytest.mark.parametrize(("name", "options", "count"), FILES)
def test_every_row_is_read(name: str, options: dict[str, Any], count: int | None) -> None:
    """Every row makes an example, with no error and nothing empty, and as many as are known to be in the
    file."""
    rows = rows_of(name)
    parser = parser_of(FileSource.model_validate({"path": name} | options), rows[:20])
    examples = [pair for row in rows for pair in parser.parse(row)]
    places = {place for place, _ in examples}
    assert len(places) == len(examples) >= len(rows)
    assert count in (None, len(examples))
    for _, example in examples:
        match example:
            case Conversation(messages):
                assert messages[-1].role == "assistant"
            case PlainText(_, completion):
                assert completion
            case Preference(_, chosen, rejected):
                assert chosen != rejected


@pytest.mark.parametrize("name", AUTO)
def test_auto_finds_the_format(name: str) -> None:
    """Format auto finds the format of files whose columns leave no doubt."""
    assert parser_of(FileSource(path=name, format="auto"), rows_of(name)[:20]).format.name == AUTO[name]


def test_tools_are_kept() -> None:
    """In the file of tool calls, every call and result becomes a message, and each conversation has its
    tools."""
    rows = rows_of("chat/lf_glaive_toolcall_en_demo.json")
    parser = parser_of(FileSource(path="a.json", format="sharegpt"), rows)
    found = [example for row in rows for _, example in parser.parse(row) if isinstance(example, Conversation)]
    assert sum(len(message.tool_calls) for example in found for message in example.messages) == 211
    assert sum(message.role == "tool" for example in found for message in example.messages) == 211
    assert sum(bool(example.tools) for example in found) == sum(
        row.values["tools"] not in ("", "[]") for row in rows
    )

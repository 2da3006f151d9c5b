"""Rows that repeat or nearly repeat an earlier one."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.preparation import prepare
from tests.unit.data_prep.rows import file, places, said, section, talk, with_template


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_duplicates_across_sources(
    duplicates: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A row that equals an earlier one of any source, case and white space aside, is counted, and dropped if
    so asked."""
    first = file(
        tmp_path / "a.jsonl", said(("Say blue.", "blue sky"), ("Say red.", "red"), ("Say blue.", "blue sky"))
    )
    second = file(tmp_path / "b.jsonl", said((" say\tBLUE.", "Blue  Sky\n"), ("Say green.", "green")))
    data = prepare(section(first, second, clean={"duplicates": duplicates}), tokenizer, seed=0)
    rows = [
        source.duplicates if duplicates == "keep" else source.dropped["duplicate"]
        for source in data.report.sources
    ]
    counted = [(row.count, row.places) for row in rows]
    assert counted == [(1, ["a.jsonl:3"]), (1, ["b.jsonl:1"])]
    lines = "\n".join(data.report.lines())
    if duplicates == "keep":
        assert len(data.train) == 5
        assert "  kept 1 that repeat an earlier row: b.jsonl:1" in lines
    else:
        assert places(data.train) == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:2"]
        assert "  dropped 1 that repeat an earlier row: a.jsonl:3" in lines
        assert "  dropped 1 that repeat an earlier row: b.jsonl:1" in lines
        assert "kept 1" not in lines


def test_evaluation_rows_that_repeat_are_counted_only(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows that are evaluated on stay as they are: one that repeats another is counted and kept whatever
    clean says."""
    held_out = file(tmp_path / "e.jsonl", said(("a", "b"), ("A", "b "), ("c", "d")))
    train = file(tmp_path / "t.jsonl", said(("e", "f")))
    clean = {"duplicates": "drop", "near_duplicates": 0.5}
    data = prepare(section(train, evaluation={"sources": [held_out]}, clean=clean), tokenizer, seed=0)
    assert len(data.evaluation) == len(data.evaluation_examples) == 3
    assert data.report.sources[1].duplicates.count == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(talk("q", "a"), talk("q", "b"), id="the answer"),
        pytest.param(talk("q", "a"), talk("p", "a"), id="the question"),
        pytest.param(talk("q", "a", system="Be brief."), talk("q", "a"), id="the system message"),
        pytest.param(talk("q", "a", "b", "c"), talk("q", "a b", "b", "c"), id="a turn"),
        pytest.param(talk("q", "a b"), talk("q", "ab"), id="where words end"),
    ],
)
def test_rows_that_differ_are_no_duplicates(
    one: dict[str, Any], other: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows that differ in more than case and white space are both kept."""
    data = prepare(
        section(file(tmp_path / "a.jsonl", [one, other], "messages"), clean={"duplicates": "drop"}),
        tokenizer,
        seed=0,
    )
    assert len(data.train) == 2


def test_rows_with_other_tools_are_no_duplicates(tmp_path: Path, base: Path) -> None:
    """Rows that differ in the tools that can be called are both kept."""
    template = (
        "{{ tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    tools = [[{"name": name, "description": "", "parameters": {}}] for name in ("weather", "clock")]
    rows = [talk("What is the time?", "I can't tell.") | {"tools": tool} for tool in tools]
    data = section(file(tmp_path / "a.jsonl", rows, "messages"), clean={"duplicates": "drop"})
    assert len(prepare(data, with_template(base, template, tmp_path), seed=0).train) == 2


def test_rows_whose_completion_begins_elsewhere_are_no_duplicates(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two plain rows of the same text, of which another part is learned, are both kept."""
    rows = [
        {"prompt": "The sky is", "completion": " blue today."},
        {"prompt": "The sky is blue", "completion": " today."},
    ]
    data = section(file(tmp_path / "a.jsonl", rows, "prompt_completion"), clean={"duplicates": "drop"})
    assert len(prepare(data, tokenizer, seed=0).train) == 2


def test_near_duplicates(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row that nearly repeats one of an earlier source is dropped, and the earlier one named; system
    messages count not."""
    words = [f"word{number}" for number in range(100)]
    systems = [" ".join(f"{name}{number}" for number in range(200)) for name in ("one", "two")]
    original, changed = " ".join(words), " ".join([*words[:50], "other", *words[51:]])
    first = [talk("Say it.", "not this"), talk("Say it.", original, system=systems[0])]
    second = [
        talk("Say it.", changed, system=systems[1]),
        talk("Say others.", " ".join(reversed(words)), system=systems[0]),
    ]
    sources = [
        file(tmp_path / f"{name}.jsonl", rows, "messages") for name, rows in {"a": first, "b": second}.items()
    ]
    data = prepare(section(*sources, clean={"near_duplicates": 0.8}), tokenizer, seed=0)
    assert places(data.train) == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:2"]
    assert "  dropped 1 that nearly repeat an earlier row: b.jsonl:1 (like a.jsonl:2)" in data.report.lines()
    assert len(prepare(section(*sources), tokenizer, seed=0).train) == 4

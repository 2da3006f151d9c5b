"""What is found in rows, and refused unless the recipe allows it; rows that leak into the evaluation."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.preparation import prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.unit.data_prep.rows import file, places, said, section, talk, with_template

NO_END = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
"""A chat template that ends an answer with no token."""
TWICE = (
    "{{ bos_token }}{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% "
    "endfor %}"
)
"""A chat template that writes BOS twice."""


def found(
    finding: str, folders: dict[str, Path], tmp_path: Path
) -> tuple[DataSection, PreTrainedTokenizerFast]:
    """Data with a finding in the second and third of four rows, but that a template's is in every row."""
    rows = said(("Say red.", "red"), ("Say blue.", "blue"), ("Say lamp.", "lamp"), ("Say white.", "white"))
    source = file(tmp_path / "a.jsonl", rows)
    if finding == "leakage":
        held_out = file(tmp_path / "e.jsonl", rows[1:3])
        return section(source, evaluation={"sources": [held_out]}), load_tokenizer(folders["plain"])
    if finding == "double_bos":
        return section(source), with_template(folders["llama"], TWICE, tmp_path)
    return section(source), with_template(folders["plain"], NO_END, tmp_path)


@pytest.mark.parametrize(
    ("finding", "count", "message"),
    [
        (
            "unsupervised_end_of_turn",
            4,
            r"^a\.jsonl:1: the answer as the chat template \(.*own\.jinja\) writes it ends in",
        ),
        ("double_bos", 4, r"^a\.jsonl:1: it begins with two <s>; remove one of them"),
        ("leakage", 2, r"^a\.jsonl:2: it is also in the evaluation rows"),
    ],
)
def test_findings_are_refused_unless_they_are_allowed(
    finding: str, count: int, message: str, base: Path, llama_folder: Path, tmp_path: Path
) -> None:
    """A finding is refused with its row, reported by an audit, and counted where the recipe allows it; naming
    another finding doesn't allow it; and all of that is the same where the cache holds what was prepared
    before."""
    data, tokenizer = found(finding, {"plain": base, "llama": llama_folder}, tmp_path)
    others = [
        name
        for name in ("double_bos", "leakage", "unsupervised_end_of_turn", "no_supervised_token")
        if name != finding
    ]
    allowed, not_allowed = (
        data.model_copy(update={"allow_findings": names}) for names in ((finding,), tuple(others))
    )
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        for refused in (data, not_allowed):
            with pytest.raises(DataError, match=message):
                prepare(refused, tokenizer, seed=0, cache=cache)
        for prepared in (
            prepare(allowed, tokenizer, seed=0, cache=cache),
            prepare(data, tokenizer, seed=0, cache=cache, audit=True),
        ):
            assert len(prepared.train) == 4
            assert prepared.report.findings() == {finding: count}
            assert prepared.report.sources[0].findings[finding].count == count


def test_a_row_counts_once_for_a_finding(base: Path, tmp_path: Path) -> None:
    """A conversation of three answers that have no end is one row with that finding."""
    data = section(file(tmp_path / "a.jsonl", [talk("q", "a", "r", "b", "s", "c")], "messages"))
    prepared = prepare(data, with_template(base, NO_END, tmp_path), seed=0, audit=True)
    assert prepared.report.findings() == {"unsupervised_end_of_turn": 1}


def test_a_row_with_nothing_to_learn_is_no_reason_to_refuse(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows with no token to learn are dropped and found, and the others are prepared, an audit or not."""
    rows = [{"prompt": "", "completion": "<|im_end|>"}, {"prompt": "a", "completion": "b"}]
    data = section(file(tmp_path / "a.jsonl", rows, "prompt_completion"), special_tokens_in_text="keep")
    for audit in (False, True):
        prepared = prepare(data, tokenizer, seed=0, audit=audit)
        assert prepared.report.findings() == {"no_supervised_token": 1}
        assert places(prepared.train) == ["a.jsonl:2"]


def leaking(tmp_path: Path, **options: Any) -> DataSection:
    """Three of five rows, in two sources, stand in the evaluation as well."""
    first = file(
        tmp_path / "a.jsonl", said(("Say red.", "red"), ("SAY blue.", "blue "), ("Say lamp.", "lamp"))
    )
    second = file(tmp_path / "b.jsonl", said(("Say lamp.", "lamp"), ("Say green.", "green")))
    held_out = file(
        tmp_path / "e.jsonl", said(("Say lamp.", "lamp"), ("Say blue.", "blue"), ("Say white.", "white"))
    )
    return section(first, second, evaluation={"sources": [held_out]}, **options)


def test_leakage_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Training rows that also stand in the evaluation are refused with their number and the first one's
    place, from the cache too."""
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        with pytest.raises(DataError) as failed:
            prepare(leaking(tmp_path), tokenizer, seed=0, cache=cache)
        assert str(failed.value) == (
            "a.jsonl:2: it is also in the evaluation rows\n"
            "3 rows are affected. Fix them (data.clean.leakage: drop leaves them out), or allow this with "
            "data.allow_findings: [leakage]"
        )


@pytest.mark.parametrize(("audit", "allowed"), [(True, []), (False, ["leakage"]), (True, ["leakage"])])
def test_leakage_is_reported(
    audit: bool, allowed: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """For an audit, and where the recipe allows it, rows that leak are reported and kept."""
    data = prepare(leaking(tmp_path, allow_findings=allowed), tokenizer, seed=0, audit=audit)
    assert data.report.findings() == {"leakage": 3}
    assert data.report.first("leakage") == "a.jsonl:2: it is also in the evaluation rows"
    assert (len(data.train), len(data.evaluation)) == (5, 3)


def test_leakage_is_dropped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With leakage: drop the training rows are left out and counted, and no row stands on both sides."""
    data = prepare(leaking(tmp_path, clean={"leakage": "drop"}), tokenizer, seed=0)
    assert places(data.train) == ["a.jsonl:1", "b.jsonl:2"]
    assert places(data.evaluation) == ["e.jsonl:1", "e.jsonl:2", "e.jsonl:3"]
    lines = data.report.lines()
    assert "  dropped 2 that are also in the evaluation rows: a.jsonl:2, a.jsonl:3" in lines
    assert "  dropped 1 that are also in the evaluation rows: b.jsonl:1" in lines
    assert data.report.findings() == {}


def test_leakage_is_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With leakage: keep the rows are kept, and are no finding."""
    data = prepare(leaking(tmp_path, clean={"leakage": "keep"}), tokenizer, seed=0)
    assert (len(data.train), data.report.findings()) == (5, {})

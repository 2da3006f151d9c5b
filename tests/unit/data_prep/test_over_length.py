"""Rows over the length: dropped, cut or split, and what is lost."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.errors import DataError
from data_prep.preparation import PreparedData, prepare
from data_prep.table.documents import Document
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.unit.data_prep.rows import file, places, said, section


@pytest.fixture(scope="module")
def with_bos(llama_folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that puts <s> before a text; its template writes ChatML after it."""
    return load_tokenizer(llama_folder, chat_template="chatml")


def over_length(
    how: str, most: int, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> tuple[list[Document], PreparedData]:
    """The whole documents, and what is prepared of them with a length."""
    source = file(tmp_path / "a.jsonl", rows)
    whole = list(prepare(section(source), tokenizer, seed=0).train)
    return whole, prepare(section(source, over_length=how, max_length_tokens=most), tokenizer, seed=0)


LONG_ANSWER = said(("Count.", " ".join(map(str, range(60)))), ("Say blue.", "blue"))
LONG_QUESTION = said((" ".join(map(str, range(60))), "Yes, all of these."), ("Say blue.", "blue"))


def test_truncate_end(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row that is cut at its end keeps its first tokens; what was learned of the rest is counted as
    lost."""
    whole, data = over_length("truncate_end", 64, LONG_ANSWER, with_bos, tmp_path)
    assert data.train[0].token_ids == whole[0].token_ids[:64]
    assert data.train[0].weights == whole[0].weights[:64]
    assert data.train[1] == whole[1]
    report, lost = data.report.sources[0], sum(whole[0].supervised[64:])
    assert lost > 50
    assert (report.truncated.count, report.truncated.places) == (1, ["a.jsonl:1"])
    assert report.truncated_supervised_tokens == lost
    assert (
        f"  cut 1 to data.max_length_tokens, losing {lost:,} supervised tokens: a.jsonl:1"
        in data.report.lines()
    )


def test_truncate_end_with_nothing_left_to_learn(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row whose answer is cut off whole is dropped as too long, and counted as that alone."""
    whole, data = over_length("truncate_end", 64, LONG_QUESTION, with_bos, tmp_path)
    report = data.report.sources[0]
    assert list(data.train) == whole[1:]
    assert report.dropped["too_long"].places == ["a.jsonl:1"]
    assert (report.truncated.count, report.truncated_supervised_tokens, report.rows_kept) == (0, 0, 1)


def test_truncate_start(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row that is cut at its start keeps BOS and its last tokens, with all that is learned where only the
    question is cut."""
    whole, data = over_length("truncate_start", 64, LONG_QUESTION, with_bos, tmp_path)
    cut = data.train[0]
    assert cut.token_ids == [with_bos.bos_token_id, *whole[0].token_ids[-63:]]
    assert cut.weights == [0.0, *whole[0].weights[-63:]]
    report = data.report.sources[0]
    assert (report.truncated.places, report.truncated_supervised_tokens) == (["a.jsonl:1"], 0)
    whole, data = over_length("truncate_start", 64, LONG_ANSWER, with_bos, tmp_path)
    assert data.train[0].token_ids == [with_bos.bos_token_id, *whole[0].token_ids[-63:]]
    lost = whole[0].supervised_tokens - data.train[0].supervised_tokens
    assert data.report.sources[0].truncated_supervised_tokens == lost > 50


def test_truncate_start_without_bos(llama_folder: Path, tmp_path: Path) -> None:
    """Where a row begins with no BOS, one that is cut at its start begins with none either."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    tokenizer.chat_template = str(tokenizer.chat_template).removeprefix("{{ bos_token }}")
    whole, data = over_length("truncate_start", 64, LONG_QUESTION, tokenizer, tmp_path)
    assert whole[0].token_ids[0] != tokenizer.bos_token_id
    assert data.train[0].token_ids == whole[0].token_ids[-64:]


def test_split(with_bos: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row that is split becomes documents of the length that begin with BOS and together hold all of its
    tokens; those with nothing to learn are left out. Behind BOS stands the last token of the part before, so
    no label is lost."""
    rows = said((" ".join(map(str, range(40))), " ".join(map(str, range(60)))), ("Say blue.", "blue"))
    whole, data = over_length("split", 64, rows, with_bos, tmp_path)
    *parts, short = data.train
    assert short == whole[1]
    bos, ids = with_bos.bos_token_id, whole[0].token_ids
    assert whole[0].weights[:64] == [0.0] * 64
    expected = [ids[:64], *([bos, *ids[start - 1 : start + 62]] for start in range(64, len(ids), 62))]
    assert [part.token_ids for part in parts] == expected[1:]  # the first part holds nothing but the question
    assert places(parts) == [f"a.jsonl:1 part {number}" for number in range(2, len(expected) + 1)]
    report = data.report.sources[0]
    assert sum(part.supervised_tokens for part in parts) == whole[0].supervised_tokens
    learned = [
        token for part in parts for token, weight in zip(part.token_ids, part.weights, strict=True) if weight
    ]
    assert learned == [token for token, weight in zip(ids, whole[0].weights, strict=True) if weight]
    assert report.truncated_supervised_tokens == 0
    assert (report.rows_kept, report.documents, data.report.train_rows) == (
        2,
        len(data.train),
        len(data.train),
    )
    assert "  split 1 into documents of data.max_length_tokens: a.jsonl:1" in data.report.lines()


def test_a_run_of_an_earlier_version_splits_as_it_did(llama_folder: Path, tmp_path: Path) -> None:
    """By preparation 2 parts share no token, and the label of each part's first one is lost, and counted."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml", preparation=2)
    whole, data = over_length("split", 64, LONG_ANSWER, tokenizer, tmp_path)
    *parts, _ = data.train
    bos, ids = tokenizer.bos_token_id, whole[0].token_ids
    assert [part.token_ids for part in parts] == [
        ids[:64], *([bos, *ids[start : start + 63]] for start in range(64, len(ids), 63))
    ]  # fmt: skip
    lost = whole[0].supervised_tokens - sum(part.supervised_tokens for part in parts)
    assert lost == len(parts) - 1
    assert (
        f"  split 1 into documents of data.max_length_tokens ({lost} labels lost): a.jsonl:1"
        in data.report.lines()
    )


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=5),
    st.sampled_from(["drop", "truncate_end", "truncate_start", "split"]),
    st.integers(8, 90),
)
def test_no_supervised_token_goes_uncounted(
    with_bos: PreTrainedTokenizerFast, words: list[tuple[int, int]], how: str, most: int
) -> None:
    """Of any rows, what is kept is no longer than the length, begins with BOS and has something to learn;
    every learned token is kept, counted as lost, or of a row that is dropped."""
    rows = said(
        *((f"{row} " * question, f"a{row} " * answer) for row, (question, answer) in enumerate(words))
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            whole, data = over_length(how, most, rows, with_bos, Path(folder))
        except DataError as error:
            assert "leaves no row" in str(error)  # noqa: PT017 - every row may be dropped
            return
    assert all(len(document.token_ids) <= most for document in data.train)
    assert all(document.token_ids[0] == with_bos.bos_token_id for document in data.train)
    assert all(document.supervised_tokens and not document.supervised[0] for document in data.train)
    report = data.report.sources[0]
    kept = {place.split()[0] for place in places(data.train)}
    of_kept = sum(document.supervised_tokens for document in whole if document.place in kept)
    assert report.supervised_tokens + report.truncated_supervised_tokens == of_kept
    assert how != "split" or report.truncated_supervised_tokens == 0
    dropped = report.dropped["too_long"].count if "too_long" in report.dropped else 0
    assert len(kept) + dropped == len(rows) == report.rows_read
    assert report.truncated.count + report.split.count == sum(
        len(document.token_ids) > most for document in whole if document.place in kept
    )

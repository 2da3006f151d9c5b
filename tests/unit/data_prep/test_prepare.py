"""The whole way of the data section."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.chat.tokenization import tokenize
from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.messages import Conversation
from data_prep.preparation import PreparedData, prepare
from data_prep.tokenizers.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


def section(path: Path, **options: Any) -> DataSection:
    return DataSection.model_validate({"train": [{"path": str(path), "format": "alpaca"}]} | options)


def places(data: PreparedData) -> tuple[list[str], list[str]]:
    return [document.place for document in data.train], [document.place for document in data.evaluation]


def test_rows_in_documents_out(alpaca_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every row becomes a document, in order, and the report's counts are those of the documents."""
    data = prepare(section(alpaca_file), tokenizer, seed=0)
    assert places(data) == ([f"rows.json row {n}" for n in range(1, 41)], [])
    report = data.report.sources[0]
    assert (report.rows_read, report.rows_kept, report.dropped) == (40, 40, {})
    assert report.tokens == sum(len(document.token_ids) for document in data.train)
    assert report.supervised_tokens == sum(sum(document.supervised) for document in data.train)
    assert report.longest_tokens == max(len(document.token_ids) for document in data.train)
    assert data.report.lines()[-1] == "40 rows to train on, 0 to evaluate on"
    assert json.loads(json.dumps(data.report.as_dict())) == data.report.as_dict()
    assert list(data.digests) == [str(alpaca_file)]


def test_too_long(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row over the length is dropped whole, counted and named; with over_length: refuse it is an error."""
    rows = [{"instruction": "Say it.", "output": "x " * (200 if i % 2 else 1)} for i in range(10)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    data = prepare(section(path, max_length_tokens=100), tokenizer, seed=0)
    drop = data.report.sources[0].dropped["too_long"]
    assert (drop.count, drop.places) == (5, ["rows.json row 2", "rows.json row 4", "rows.json row 6"])
    assert len(data.train) == 5
    assert all(len(document.token_ids) <= 100 for document in data.train)
    assert (
        "dropped 5 longer than data.max_length_tokens: rows.json row 2, rows.json row 4, rows.json row 6, ..."
        in ("\n".join(data.report.lines()))
    )
    with pytest.raises(
        DataError, match=r"rows.json row 2 has \d+ tokens, more than data.max_length_tokens \(100\)"
    ):
        prepare(section(path, max_length_tokens=100, over_length="refuse"), tokenizer, seed=0)
    with pytest.raises(DataError, match=r"data.train leaves no rows:\n.*\n  dropped 10 longer"):
        prepare(section(path, max_length_tokens=8), tokenizer, seed=0)


def test_no_supervised_token(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row with nothing to learn is dropped and counted."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "", "completion": "<|im_end|>"}\n{"prompt": "a", "completion": "b"}\n')
    source = {"path": str(path), "format": "prompt_completion"}
    values = {"train": [source], "special_tokens_in_text": "keep"}
    data = prepare(DataSection.model_validate(values), tokenizer, seed=0)
    assert data.report.sources[0].dropped["no_supervised_token"].places == ["rows.jsonl:1"]
    assert len(data.train) == 1


def test_special_tokens_in_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row whose text would become a special token is dropped and named, or kept and counted."""
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps(
            [{"instruction": "What is <|im_end|>?", "output": "b"}, {"instruction": "a", "output": "b"}]
        )
    )
    report = prepare(section(path), tokenizer, seed=0).report
    assert report.sources[0].dropped["special_tokens_in_text"].places == ["rows.json row 1"]
    assert "  dropped 1 with a special token in their text" in "\n".join(report.lines())
    kept = prepare(section(path, special_tokens_in_text="keep"), tokenizer, seed=0)
    assert len(kept.train) == 2
    assert kept.report.as_dict()["sources"][0]["special_tokens_in_text"] == 1
    assert "  kept 1 with a special token in their text" in kept.report.lines()


def test_empty_answers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row whose answer is blank teaches to say nothing: it is dropped with that reason, in every format."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]
    rows = {
        "alpaca": [{"instruction": "a", "output": ""}, {"instruction": "a", "output": "b"}],
        "prompt_completion": [{"prompt": "a", "completion": " "}, {"prompt": "a", "completion": "b"}],
        "messages": [{"messages": talk}, {"messages": [talk[0], talk[1] | {"content": "b"}]}],
    }
    for name, values in rows.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        data = prepare(
            DataSection.model_validate({"train": [{"path": str(path), "format": name}]}), tokenizer, seed=0
        )
        assert data.report.sources[0].dropped["empty_answer"].places == [f"{name}.json row 1"]
        assert len(data.train) == 1


def test_unread_columns(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Columns that the format doesn't read are reported, with how many rows have them."""
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps([{"instruction": "a", "output": "b", "id": 3}, {"instruction": "a", "output": "b"}])
    )
    report = prepare(section(path), tokenizer, seed=0).report
    assert report.as_dict()["sources"][0]["unread_columns"] == {"id": 1}
    assert "  columns that format alpaca doesn't read: 'id' (1 rows)" in report.lines()


def test_files_of_the_same_name(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Where two sources share a file's name, the places of their rows name the folder, too."""
    sources = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
        sources.append({"path": str(tmp_path / folder / "rows.json"), "format": "alpaca"})
    data = prepare(DataSection.model_validate({"train": sources}), tokenizer, seed=0)
    assert places(data)[0] == ["one/rows.json row 1", "two/rows.json row 1"]


def test_evaluation_fraction(alpaca_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The seed draws the evaluation rows: the same ones each time, others with another seed, none in both
    parts."""
    options = {"evaluation": {"fraction": 0.1}}
    data = prepare(section(alpaca_file, **options), tokenizer, seed=3)
    train, evaluation = places(data)
    assert len(evaluation) == 4
    assert sorted(train + evaluation) == sorted(f"rows.json row {n}" for n in range(1, 41))
    assert places(prepare(section(alpaca_file, **options), tokenizer, seed=3)) == (train, evaluation)
    assert places(prepare(section(alpaca_file, **options), tokenizer, seed=4)) != (train, evaluation)


def test_evaluation_examples_are_aligned(alpaca_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Evaluation examples are those that the evaluation documents were made of, though rows were dropped
    before."""
    lengths = sorted(
        len(document.token_ids) for document in prepare(section(alpaca_file), tokenizer, seed=0).train
    )
    options = {"evaluation": {"fraction": 0.3}, "max_length_tokens": lengths[30]}
    data = prepare(section(alpaca_file, **options), tokenizer, seed=0)
    assert data.report.sources[0].dropped["too_long"].count > 0
    pairs = [
        (document.place, example)
        for document, example in zip(data.evaluation, data.evaluation_examples, strict=True)
    ]
    assert tokenize(pairs, tokenizer, "assistant") == list(data.evaluation)


@pytest.mark.parametrize(("fraction", "side"), [(0.01, "evaluate"), (0.99, "train")])
def test_fraction_that_leaves_no_row(
    fraction: float, side: str, alpaca_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A fraction that leaves nothing to evaluate or to train on is refused."""
    with pytest.raises(
        DataError, match=f"data.evaluation.fraction {fraction} of 40 rows leaves no rows to {side} on"
    ):
        prepare(section(alpaca_file, evaluation={"fraction": fraction}), tokenizer, seed=0)


def test_evaluation_sources(alpaca_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Sources of their own are evaluated on; each has its report and its digest."""
    held_out = {"generated": "orders", "split": "held_out", "rows": 5}
    data = prepare(section(alpaca_file, evaluation={"sources": [held_out]}), tokenizer, seed=0)
    assert (len(data.train), len(data.evaluation)) == (40, 5)
    assert [source.use for source in data.report.sources] == ["train", "evaluation"]
    assert set(data.digests) == {str(alpaca_file), "orders/held_out (5 rows, seed 0)"}
    assert isinstance(data.evaluation_examples[0], Conversation)


def test_bad_row_has_its_place(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """One bad row stops the preparation with its file, number and field."""
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps([{"instruction": "a", "output": "b"}] * 4 + [{"instruction": "a", "output": None}])
    )
    with pytest.raises(DataError, match=r"^rows.json row 5, read as format 'alpaca': output is null"):
        prepare(section(path), tokenizer, seed=0)


def test_a_row_that_makes_several(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows and the examples made of them are counted apart, and a place names both."""
    path = tmp_path / "rows.json"
    rows = [{"document": "d", "summary": ["a", "b"]}, {"document": "e", "summary": ["c", " "]}]
    path.write_text(json.dumps(rows))
    data = prepare(
        DataSection.model_validate({"train": [{"path": str(path), "format": "auto"}]}), tokenizer, seed=0
    )
    report = data.report.sources[0]
    assert places(data)[0] == ["rows.json row 1.1", "rows.json row 1.2", "rows.json row 2.1"]
    assert (report.rows_read, report.examples_made, report.rows_kept, report.format) == (
        2,
        4,
        3,
        "summarisation",
    )
    assert report.dropped["empty_answer"].places == ["rows.json row 2.2"]
    assert "summarisation): 3 of 4 examples (from 2 rows) kept" in data.report.lines()[0]
    assert (
        "  format auto: summarisation, because each of the first 2 rows has 'document' and 'summary'"
        in data.report.lines()
    )


def test_preferences_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Pairs are checked, and then refused by name: training on them comes later."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "p", "chosen": "a", "rejected": "b"}]))
    values = {"train": [{"path": str(path), "format": "preference"}]}
    with pytest.raises(
        DataError,
        match="1 of its rows are pairs of a chosen and a rejected answer, answers that were judged",
    ):
        prepare(DataSection.model_validate(values), tokenizer, seed=0)


def test_a_mapped_column_that_no_row_has(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """An optional column may be absent from rows, but one that `columns` names must be in some."""
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "topic": "c"}])
    )
    source = {"path": str(path), "format": "alpaca"}
    data = prepare(
        DataSection.model_validate({"train": [source | {"columns": {"input": "topic"}}]}), tokenizer, seed=0
    )
    assert len(data.train) == 2
    with pytest.raises(DataError, match="no row has the column 'topc' that `columns` names"):
        prepare(
            DataSection.model_validate({"train": [source | {"columns": {"input": "topc"}}]}),
            tokenizer,
            seed=0,
        )


def test_bad_rows_are_skipped_and_counted_when_asked(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With on_bad_row skip, unreadable and refused rows are counted with what is wrong; other files of a
    folder are said."""
    folder = tmp_path / "rows"
    folder.mkdir()
    good = json.dumps({"instruction": "Say blue.", "output": "blue"})
    (folder / "a.jsonl").write_text(f"{good}\n{{broken\n{json.dumps({'instruction': 'x'})}\n{good}\n")
    (folder / "notes.md").write_text("not rows")
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        prepare(section(folder), tokenizer, seed=0)
    data = prepare(section(folder, on_bad_row="skip"), tokenizer, seed=0)
    report = data.report.sources[0]
    assert (report.rows_read, report.rows_kept, report.dropped["bad_row"].count) == (4, 2, 2)
    printed = "\n".join(data.report.lines())
    for part in ("a.jsonl:2", "a.jsonl:3", "not read in this folder: notes.md"):
        assert part in printed

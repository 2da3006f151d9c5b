"""Rows of Arrow: the same as JSONL's, whatever nulls a struct's other rows put in, and whatever can't be read
beside them."""

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.config import DataSection, FileSource, HubSource
from data_prep.errors import DataError
from data_prep.preparation import PreparedData, prepare
from data_prep.sources import Row, read_rows
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.unit.data_prep.rows import content, write


def calling(name: str, arguments: dict[str, Any], answer: str) -> list[dict[str, Any]]:
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }
    return [
        {"role": "user", "content": f"Use {name}."},
        call,
        {"role": "tool", "content": answer},
        {"role": "assistant", "content": "Done."},
    ]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }


STRING, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
ROWS: list[dict[str, Any]] = [
    {"messages": calling("weather", {"town": "Kiel"}, "Rain"), "tools": [tool("weather", town=STRING)]},
    {"messages": calling("add", {"a": 1, "b": 2}, "3"), "tools": [tool("add", a=NUMBER, b=NUMBER), tool("w", town=STRING)]},
    {"messages": calling("clock", {}, "Noon"), "tools": [tool("clock")]},
    {"messages": calling("place", {"at": {"x": 1}, "tags": ["a"]}, "ok"), "tools": [tool("place", at={"type": "object"})]},
]  # fmt: skip


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_arrow(folder: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(folder / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)
    return folder / "rows.arrow"


def as_saved(folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def as_json_type(folder: Path) -> Path:
    """As `datasets` stores rows whose shapes differ: each value as JSON, by an extension type."""
    import datasets

    write(folder / "rows.jsonl", ROWS)
    loaded = datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "c")
    )
    loaded.to_parquet(folder / "rows.parquet")
    assert "arrow.json" in str(pq.read_schema(folder / "rows.parquet"))
    return folder / "rows.parquet"


WRITERS: list[Callable[[Path], Path]] = [as_parquet, as_arrow, as_saved, as_json_type]


def prepared(path: Path, tokenizer: PreTrainedTokenizerFast) -> PreparedData:
    section = {"train": [{"path": str(path), "format": "messages"}], "max_length_tokens": 4096}
    return prepare(DataSection.model_validate(section), tokenizer, seed=0)


@pytest.mark.parametrize("written", WRITERS, ids=lambda written: written.__name__)
def test_the_same_rows_give_the_same_tokens(
    written: Callable[[Path], Path], tmp_path: Path, llama_folder: Path
) -> None:
    """Conversations with calls and tools of several shapes are the same documents from JSONL, Parquet, Arrow
    and `datasets`."""
    tokenizer = load_tokenizer(
        llama_folder, chat_template="chatml", new_tokens=("<|im_start|>", "<|im_end|>")
    )
    (tmp_path / "jsonl").mkdir()
    write(tmp_path / "jsonl" / "rows.jsonl", ROWS)
    plain, arrow = (
        prepared(tmp_path / "jsonl" / "rows.jsonl", tokenizer),
        prepared(written(tmp_path), tokenizer),
    )
    assert [document.token_ids for document in arrow.train] == [
        document.token_ids for document in plain.train
    ]
    assert [document.spans for document in arrow.train] == [document.spans for document in plain.train]
    text = tokenizer.decode(arrow.train[0].token_ids)
    assert '{"town": "Kiel"}' in text
    assert "null" not in text


def rows_of(path: Path) -> list[Row]:
    return list(read_rows(FileSource(path=str(path), format="messages")))


def test_a_null_that_a_row_says_stays(tmp_path: Path) -> None:
    """JSON's own null stays one, in JSONL and in a column of JSON; a map's and a list's stay too."""
    row = {"messages": calling("f", {"x": None}, "ok")}
    write(tmp_path / "rows.jsonl", [row])
    assert rows_of(tmp_path / "rows.jsonl")[0].values == row
    texts = pa.array([json.dumps(row["messages"])]).cast(pa.json_())
    table = {
        "messages": texts,
        "map": pa.array([[("a", None)]], pa.map_(pa.string(), pa.int64())),
        "list": [[None, 1]],
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    [read] = rows_of(tmp_path / "rows.parquet")
    assert read.values == row | {"map": {"a": None}, "list": [None, 1]}


def test_json_in_a_column_that_is_none(tmp_path: Path) -> None:
    """A value of the JSON type that can be meant in two ways is its row's problem."""
    pq.write_table(
        pa.table({"x": pa.array(['{"a": 1, "a": 2}', '{"a": 1}']).cast(pa.json_())}),
        tmp_path / "rows.parquet",
    )
    skipped: list[DataError] = []
    rows = list(read_rows(FileSource(path=str(tmp_path / "rows.parquet"), format="text"), skipped.append))
    assert [row.values for row in rows] == [{"x": {"a": 1}}]
    assert "rows.parquet row 1 can't be read: the key 'a' appears twice" in str(skipped[0])


PICTURE = {"bytes": b"\x89PNG", "path": "a.png"}
BESIDE: dict[str, Any] = {
    "image": pa.array([PICTURE]), "images": pa.array([[PICTURE]]), "embedding": pa.array([b"\x00\xff"]),
    "fixed": pa.array([b"ab"], pa.binary(2)), "took": pa.array([5], pa.duration("s")),
    "parts": pa.array([[b"a", b"b"]]), "meta": pa.array([{"name": "a", "blob": b"b"}]),
    "pairs": pa.array([[(1, "a")]], pa.map_(pa.int32(), pa.string())),
    "several": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", BESIDE)
def test_a_column_that_nobody_reads(
    name: str, kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Bytes, pictures, durations and the like don't matter where the format doesn't read them; the column is
    counted."""
    table = pa.table({"instruction": ["Say ho."], "output": ["ho"], name: BESIDE[name]})
    path = tmp_path / f"rows.{kind}"
    if kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    elif pa.types.is_union(table.schema.field(name).type):
        pytest.skip("Parquet has no unions")
    else:
        pq.write_table(table, path)
    beside = prepare(
        DataSection.model_validate({"train": [{"path": str(path), "format": "alpaca"}]}), tokenizer, seed=0
    )
    plain = tmp_path / "plain" / f"rows.{kind}"
    plain.parent.mkdir()
    write(plain.with_suffix(".jsonl"), [{"instruction": "Say ho.", "output": "ho"}])
    source = {"path": str(plain.with_suffix(".jsonl")), "format": "alpaca"}
    alone = prepare(DataSection.model_validate({"train": [source]}), tokenizer, seed=0)
    assert [row[1:] for row in content(beside.train)] == [row[1:] for row in content(alone.train)]
    assert beside.train[0].token_ids == alone.train[0].token_ids
    assert list(beside.report.sources[0].unread_columns) == [name]


@pytest.mark.parametrize(
    ("values", "source", "problem"),
    [
        (
            {"instruction": [b"a"], "output": ["b"]},
            {"format": "alpaca"},
            "instruction holds binary, .*cast it when writing the file",
        ),
        (
            {"q": [b"a"], "output": ["b"]},
            {"format": "alpaca", "columns": {"instruction": "q"}},
            "instruction holds binary",
        ),
        (
            {"instruction": ["a"], "output": ["b"], "input": [b"c"]},
            {"format": "alpaca"},
            "input holds binary",
        ),
        (
            {"messages": [[{"role": "user", "content": b"a"}]]},
            {"format": "messages"},
            "messages holds list<.*binary",
        ),
        (
            {"a": [b"a"]},
            {"format": "template", "template": {"prompt": "{{ a }}", "completion": "b"}},
            "a column holds binary",
        ),
        ({"text": [b"a"]}, {"format": "text"}, "text holds binary"),
    ],
)
def test_a_column_that_is_read(
    values: dict[str, Any],
    source: dict[str, Any],
    problem: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Where such a column is read the row is refused by its name, and never told to be left out."""
    pq.write_table(pa.table(values), tmp_path / "rows.parquet")
    section = DataSection.model_validate({"train": [{"path": str(tmp_path / "rows.parquet")} | source]})
    with pytest.raises(DataError, match=problem) as caught:
        prepare(section, tokenizer, seed=0)
    assert "leave it out" not in str(caught.value)


def test_a_picture_that_no_message_has(tmp_path: Path) -> None:
    """A field for bytes among a message's fields doesn't matter while it holds none."""
    messages = [
        {"role": "user", "content": "a", "image": None},
        {"role": "assistant", "content": "b", "image": None},
    ]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("image", pa.binary())]))
    pq.write_table(pa.table({"messages": pa.array([messages], kind)}), tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet")[0].values == {
        "messages": [{k: v for k, v in m.items() if v} for m in messages]
    }


def test_other_values_inside_structs(tmp_path: Path) -> None:
    """Dates and decimal numbers are texts at any depth, and what is null beside them is left out."""
    inside = [{"day": date(2024, 1, 2), "price": Decimal("1.10"), "x": None}]
    pq.write_table(pa.table({"x": [inside]}), tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet")[0].values == {"x": [{"day": "2024-01-02", "price": "1.10"}]}


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.torch)])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_of_the_hub(kind: str, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set's rows are those of its files, nulls of structs and pictures included, downloaded or
    streamed."""
    folder = tmp_path / "owner" / "name"  # `datasets` takes a folder of this name for the data set
    folder.mkdir(parents=True)
    if kind == "jsonl":
        write(folder / "train.jsonl", ROWS)
    else:
        table = pa.Table.from_pylist(ROWS).append_column("image", pa.array([PICTURE] * len(ROWS)))
        pq.write_table(table, folder / "train.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = list(
        read_rows(HubSource(dataset="owner/name", format="messages", revision="0" * 40), streaming=streaming)
    )
    assert [{name: row.values[name] for name in ("messages", "tools")} for row in rows] == ROWS
    assert rows[2].place == f"owner/name/train@{'0' * 40} row 3"

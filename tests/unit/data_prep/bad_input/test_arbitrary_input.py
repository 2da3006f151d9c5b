"""Arbitrary bytes, damaged files and rows of any shape."""

import copy
import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.config import FileSource
from data_prep.errors import DataError
from data_prep.formats import FORMATS
from data_prep.sources import read_rows
from tests.unit.data_prep.bad_input.outcomes import (
    ANSWER,
    HUMAN,
    LONGEST_MESSAGE,
    ROWS,
    USER,
    jsonl,
    prepared,
)

KINDS = [
    ".jsonl",
    ".csv",
    ".json",
    ".tsv",
    ".parquet",
    ".arrow",
    ".txt",
    ".txt.gz",
    ".jsonl.zst",
    ".parquet.gz",
]
FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def valid(kind: str) -> bytes:
    """A small file of this kind that can be read."""
    rows = [
        {"text": 'Zoë, "hi"\n', "label": "a", "turns": [{"x": [1, None]}]},
        {"text": "c", "label": None, "turns": []},
    ]
    plain = [{"text": 'Zoë, "hi"\n', "label": "a"}, {"text": "c", "label": "d"}]
    if kind.endswith((".gz", ".zst")):
        content = valid(kind.rpartition(".")[0])
        return (
            gzip.compress(content)
            if kind.endswith(".gz")
            else pa.compress(content, codec="zstd", asbytes=True)
        )
    if kind in (".parquet", ".arrow"):
        sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
        if kind == ".parquet":
            pq.write_table(table, sink)
        else:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        return bytes(sink.getvalue())
    if kind in (".csv", ".tsv"):
        delimiter = "," if kind == ".csv" else "\t"
        quoted = [[json.dumps(value)[1:-1].replace('\\"', '""') for value in row.values()] for row in plain]
        return "\n".join(
            delimiter.join(f'"{text}"' for text in row) for row in (list(plain[0]), *quoted)
        ).encode()
    if kind == ".txt":
        return "one\ntwo\n\nZoë".encode()
    return jsonl(*rows) if kind == ".jsonl" else json.dumps(rows).encode()


def only_data_errors(kind: str, content: bytes) -> None:
    """Read the content as a file of this kind, with and without on_bad: rows, or a DataError, and nothing
    else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{kind}"
        path.write_bytes(content)
        for on_bad in (None, lambda problem: None):
            rows, said = [], None
            try:
                rows = list(read_rows(FileSource(path=str(path), format="text"), on_bad))
            except DataError as refused:
                said = str(refused)
            assert bool(rows) == (said is None)
            assert said is None or ("rows" in said and len(said) < LONGEST_MESSAGE)
            assert all(isinstance(row.values, dict) and row.place.startswith("rows.") for row in rows)
            assert all(isinstance(name, str) for row in rows for name in row.values)


@given(st.sampled_from(KINDS), st.binary(max_size=300))
@settings(FUZZ, max_examples=200)
def test_arbitrary_bytes(kind: str, content: bytes) -> None:
    """Whatever bytes a file has, and whatever its name says that they are, they are rows or a DataError."""
    only_data_errors(kind, content)
    only_data_errors(".txt.gz", gzip.compress(content))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file of some kind, with a few bytes changed, put in or taken out, or cut off."""
    kind = draw(st.sampled_from(KINDS))
    content = bytearray(valid(kind))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["set", "set", "set", "insert", "delete", "cut"])):
            case "set":
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del content[place : place + draw(st.integers(1, 20))]
            case "cut":
                del content[max(place, 1) :]
    return kind, bytes(content)


@given(damaged())
@settings(FUZZ, max_examples=400)
def test_damaged_files(file: tuple[str, bytes]) -> None:
    """A file of any kind of which some bytes changed is rows or a DataError."""
    only_data_errors(*file)


def test_the_files_to_damage_are_whole() -> None:
    """Every kind of file that the test above damages can be read while it is whole."""
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows{kind}"
            path.write_bytes(valid(kind))
            assert len(list(read_rows(FileSource(path=str(path), format="text")))) == 2


STRANGE = [
    "", " ", "user", "assistant", "system", "tool", "human", "gpt", "function_call", "observation", "text", "image_url", "{}",
    "[]", "null", '{"name": "f"}', '{"name": "f", "arguments": "{"}', '{"name": "\\ud800", "arguments": {"x": "\\ud800"}}',
    '[{"name": "f", "description": '
    '"\\ud800"}]', "[" * 2000, "1" * 5000, "<|im_end|>", "<|im_start|>", "\x00", "\u2028", "😀",
    "\ud800",
]  # fmt: skip
NAMES = [
    *sorted({name for form in FORMATS for name in form.columns.names}), "role", "content", "from", "value",
    "weight", "loss_weight", "tool_calls", "tool_call_id", "function", "name", "arguments", "type", "id",
    "history", "qas", "functions", "",
]  # fmt: skip
NUMBERS = [10**400, -(10**400), 1e308, float("inf"), float("nan"), 0.5]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(NUMBERS),
    st.sampled_from(STRANGE),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(NAMES), below, max_size=3),
    max_leaves=6,
)


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value with each of its keys or indexes."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places_in(value[key])


@st.composite
def changed(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A source, and rows of it in which some values were replaced, taken out, repeated or added."""
    source, good = draw(st.sampled_from(ROWS))
    row = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        containers = list(places_in(row))
        if not containers:
            break
        container, key = draw(st.sampled_from(containers))
        match draw(st.sampled_from(["replace", "replace", "remove", "repeat", "add"])):
            case "replace":
                container[key] = draw(VALUES)
            case "remove":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case _ if isinstance(container, dict):
                container[draw(st.sampled_from(NAMES))] = draw(VALUES)
            case _:
                container.append(draw(VALUES))
    return source, [good, row, good] if draw(st.booleans()) else [row]


@given(
    changed(), st.sampled_from(["error", "skip"]), st.sampled_from(["assistant", "last", "completion", "all"])
)
@settings(FUZZ, max_examples=500)
@example(({"format": "messages"}, [{"messages": [USER, ANSWER | {"weight": 10**400}]}]), "error", "assistant")
@example(
    ({"format": "sharegpt"}, [{"conversations": [HUMAN, {"from": "gpt", "tool_calls": [1]}]}]),
    "skip",
    "assistant",
)
def test_arbitrary_rows(
    tokenizer: PreTrainedTokenizerFast,
    rows: tuple[dict[str, Any], list[dict[str, Any]]],
    on_bad_row: str,
    supervise: str,
) -> None:
    """Rows of any shape in any format become documents or one DataError, and every one of them is accounted
    for."""
    source, values = rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(jsonl(*values))
        clean = {"unicode": "NFC", "remove_control_characters": True, "duplicates": "drop"}
        options = {key: value for key, value in source.items() if key != "format"} | {
            "clean": clean,
            "supervise": supervise,
        }
        said, data = None, None
        try:
            data = prepared(path, tokenizer, source["format"], on_bad_row=on_bad_row, **options)
        except DataError as refused:
            said = str(refused)
        assert said is None or "rows.jsonl" in said
        if data is not None:
            (report,) = data.report.sources
            assert report.rows_read == len(values)
            assert report.examples_made == report.rows_kept + sum(
                dropped.count for dropped in report.dropped.values()
            )
            assert all(0 < document.supervised_tokens < len(document.token_ids) for document in data.train)

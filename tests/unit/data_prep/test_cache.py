"""Prepared data on disk: what is prepared once, what again, and what becomes of it when something goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.cache import SUMMARY, clear, entries
from data_prep.config import CleanSection, DataSection, EvaluationSplit, FileSource, RowTemplate
from data_prep.documents import DocumentTable
from data_prep.errors import DataError
from data_prep.prepare import TRAIN, PreparedData, prepare
from data_prep.tokenizer import load_tokenizer
from tests.conftest import CHATML, save_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]

ROWS = [
    {"instruction": f"Say {word} to {name}.", "output": f"{word}, {name}", "context": f"It is {word}.", "note": f"Ask {name}."}
    for word in ("blue", "lamp", "seven")
    for name in ("Ada", "Bob", "Eve")
]
OTHER_ROWS = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(1, 7)]
LABELLED = [{"text": f"It was {n} times as good.", "label": ("bad", "good")[n % 2]} for n in range(6)]


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


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in values))


def alpaca(path: Path, **options: Any) -> dict[str, Any]:
    return {"path": str(path), "format": "alpaca"} | options


def section(*train: dict[str, Any], **options: Any) -> DataSection:
    return DataSection.model_validate({"train": list(train)} | options)


def content(table: DocumentTable) -> list[Any]:
    """Everything that a table holds, a row a document."""
    columns = (table, table.lengths.tolist(), table.sources.tolist(), table.fingerprints.tolist())
    return list(zip(*columns, strict=True))


def same(one: PreparedData, other: PreparedData) -> bool:
    """Whether two are the same in all but where they come from."""
    return (
        content(one.train) == content(other.train)
        and content(one.evaluation) == content(other.evaluation)
        and one.report == other.report
        and one.digests == other.digests
        and one.repeats == other.repeats
        and one.evaluation_examples == other.evaluation_examples
    )


def whole_entries(folder: Path) -> list[Path]:
    return [entry.folder for entry in entries(folder)]


def test_the_second_time_they_come_from_the_cache(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What was prepared once comes from the cache from then on, the same in all as without a cache."""
    data = section(alpaca(rows / "rows.jsonl"), alpaca(rows / "other.jsonl"), evaluation={"fraction": 0.2})
    fresh = prepare(data, tokenizer, seed=3)
    first, second, third = (prepare(data, tokenizer, seed=3, cache=tmp_path / "cache") for _ in range(3))
    assert [made.from_cache for made in (fresh, first, second, third)] == [False, False, True, True]
    assert same(first, fresh)
    assert same(second, fresh)
    assert same(third, fresh)
    assert len(whole_entries(tmp_path / "cache")) == 1


def outcome(data: DataSection, tokenizer: PreTrainedTokenizerFast, cached: Path | None) -> tuple[PreparedData | None, str]:
    """What is prepared, or the message that says why nothing is."""
    try:
        return prepare(data, tokenizer, seed=0, cache=cached), ""
    except DataError as error:
        return None, str(error)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.text(max_size=30), st.text(max_size=60), st.sampled_from([None, 0, 0.5, 3])), min_size=1, max_size=8),
    st.sampled_from(["drop", "truncate_end", "truncate_start", "split"]),
)
def test_any_rows_come_from_the_cache_as_they_were(
    tokenizer: PreTrainedTokenizerFast, turns: list[tuple[str, str, float | None]], over_length: str
) -> None:
    """Whatever stands in rows, their documents, spans, weights, places and report are the same out of the cache."""
    with tempfile.TemporaryDirectory() as name:
        file, cached = Path(name) / "rows.jsonl", Path(name) / "cache"
        talks = [
            [{"role": "user", "content": asked}, {"role": "assistant", "content": answer, "weight": weight}]
            for asked, answer, weight in turns
        ]
        write(file, [{"messages": talk} for talk in talks])
        data = section({"path": str(file), "format": "messages"}, over_length=over_length, max_length_tokens=48)
        fresh, message = outcome(data, tokenizer, None)
        first, again = outcome(data, tokenizer, cached)
        assert again == message
        if fresh is None or first is None:
            return
        assert same(first, fresh)
        second = prepare(data, tokenizer, seed=0, cache=cached)
        assert second.from_cache
        assert same(second, fresh)


# What decides documents, and what doesn't.


@cache
def tokenizer_named(name: str, base: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that differs from the plain one by what its name says."""
    if name == "vocabulary":
        folder = base.parent / "other-vocabulary"
        shutil.copytree(base, folder)
        values = json.loads((base / "tokenizer.json").read_text())
        vocabulary = values["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        (folder / "tokenizer.json").write_text(json.dumps(values))
        return load_tokenizer(folder)
    if name == "chat template":
        template = base.parent / "shouting.jinja"
        template.write_text(CHATML.replace("{{ message['content'] }}", "{{ message['content'] | upper }}"))
        return load_tokenizer(base, chat_template=str(template))
    if name == "same template elsewhere":
        template = base.parent / "same.jinja"
        template.write_text(CHATML)
        return load_tokenizer(base, chat_template=str(template))
    if name == "end token":
        tokenizer = load_tokenizer(base)
        tokenizer.eos_token = "<|endoftext|>"  # noqa: S105 - no secret
        return tokenizer
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "added token": {"new_tokens": ["lamp"]},
        "special token": {"new_tokens": ["<|lamp|>"]},
        "date": {"date_string": "1 Jan 2020"},
    }
    return load_tokenizer(base, **options[name])


@dataclass(frozen=True)
class Setup:
    """What a preparation is given, but for its files."""

    source: dict[str, Any] = field(default_factory=lambda: {"format": "alpaca"})
    """The source of rows.jsonl; a path in it is that of a file in the folder."""
    data: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=lambda: {"format": "alpaca"})
    """The source of other.jsonl."""
    seed: int = 0
    tokenizer: str = "plain"
    first_rows: int | None = None

    def prepare(self, folder: Path, base: Path, cache: Path | None) -> PreparedData:
        """Prepare the rows in a folder, with every code in it allowed."""
        first = {"path": str(folder / self.source.get("path", "rows.jsonl"))}
        if "code" in self.source:
            first["code"] = str(folder / self.source["code"])
        second = {"path": str(folder / "other.jsonl")}
        options = json.loads(json.dumps(self.data).replace("FOLDER", str(folder)))
        return prepare(
            section(self.source | first, self.other | second, **options),
            tokenizer_named(self.tokenizer, base),
            seed=self.seed,
            cache=cache,
            allow_code=[sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.py")],
            first_rows=self.first_rows,
        )


TEMPLATE = {"prompt": "{{ instruction }}", "completion": "{{ output }}"}
PROMPTS = {"prompt": "Do: {{ instruction }}", "other_prompts": ["{{ instruction }}"], "completion": "{{ output }}"}
CODE = "def parse(row):\n    return {'prompt': row['instruction'], 'completion': row['output']}\n"
HELD_OUT = {"sources": [{"path": "FOLDER/other.jsonl", "format": "alpaca"}]}
KEEP = {"leakage": "keep"}


def template(**changes: Any) -> dict[str, Any]:
    return {"format": "template", "template": TEMPLATE | changes}


MATTERS: dict[str, tuple[Setup, Setup]] = {
    "train": (Setup(), Setup(source={"path": "labelled.jsonl", "format": "classification"})),
    "format": (Setup(), Setup(source={"format": "auto"})),
    "columns": (
        Setup(source={"format": "alpaca", "columns": {"input": "context"}}),
        Setup(source={"format": "alpaca", "columns": {"input": "note"}}),
    ),
    "labels": (
        Setup(source={"path": "labelled.jsonl", "format": "classification", "labels": {"bad": "no", "good": "yes"}}),
        Setup(source={"path": "labelled.jsonl", "format": "classification", "labels": {"bad": "no", "good": "y"}}),
    ),
    "template": (Setup(), Setup(source=template())),
    "template.prompt": (Setup(source=template()), Setup(source=template(prompt="{{ note }}"))),
    "template.completion": (Setup(source=template()), Setup(source=template(completion="{{ note }}"))),
    "template.chat": (Setup(source=template()), Setup(source=template(chat=False))),
    "template.other_prompts": (Setup(source=template()), Setup(source=template(other_prompts=["{{ note }}"]))),
    "seed of other_prompts": (
        Setup(source={"format": "template", "template": PROMPTS}),
        Setup(source={"format": "template", "template": PROMPTS}, seed=1),
    ),
    "code": (Setup(source={"format": "python", "code": "one.py"}), Setup(source={"format": "python", "code": "two.py"})),
    "max_length_tokens": (Setup(), Setup(data={"max_length_tokens": 40})),
    "over_length": (
        Setup(data={"max_length_tokens": 40}),
        Setup(data={"max_length_tokens": 40, "over_length": "truncate_end"}),
    ),
    "supervise": (Setup(), Setup(data={"supervise": "all"})),
    "on_bad_row": (Setup(), Setup(data={"on_bad_row": "skip"})),
    "special_tokens_in_text": (Setup(), Setup(data={"special_tokens_in_text": "keep"})),
    "clean": (Setup(), Setup(data={"clean": {"duplicates": "drop", "unicode": "NFC"}})),
    "clean.unicode": (Setup(data={"clean": {"unicode": "NFC"}}), Setup(data={"clean": {"unicode": "NFKC"}})),
    "clean.remove_control_characters": (Setup(), Setup(data={"clean": {"remove_control_characters": True}})),
    "clean.minimum_answer_characters": (
        Setup(data={"clean": {"minimum_answer_characters": 1}}),
        Setup(data={"clean": {"minimum_answer_characters": 9}}),
    ),
    "clean.duplicates": (Setup(), Setup(data={"clean": {"duplicates": "drop"}})),
    "clean.near_duplicates": (
        Setup(data={"clean": {"near_duplicates": 0.8}}),
        Setup(data={"clean": {"near_duplicates": 0.9}}),
    ),
    "clean.leakage": (
        Setup(data={"evaluation": HELD_OUT, "clean": KEEP}),
        Setup(data={"evaluation": HELD_OUT, "clean": {"leakage": "drop"}}),
    ),
    "evaluation": (Setup(data={"clean": KEEP}), Setup(data={"evaluation": HELD_OUT, "clean": KEEP})),
    "evaluation.sources": (
        Setup(data={"evaluation": HELD_OUT, "clean": KEEP}),
        Setup(data={"evaluation": {"sources": [{"path": "FOLDER/labelled.jsonl", "format": "classification"}]}, "clean": KEEP}),
    ),
    "streaming": (
        Setup(data={"evaluation": HELD_OUT, "clean": KEEP}),
        Setup(data={"evaluation": HELD_OUT, "clean": KEEP, "streaming": {"buffer_rows": 4}}),
    ),
    "first_rows": (Setup(first_rows=3), Setup(first_rows=4)),
    "vocabulary": (Setup(), Setup(tokenizer="vocabulary")),
    "added token": (Setup(), Setup(tokenizer="added token")),
    "added token that is special": (Setup(), Setup(tokenizer="special token")),
    "end token": (
        Setup(source={"format": "python", "code": "one.py"}),
        Setup(source={"format": "python", "code": "one.py"}, tokenizer="end token"),
    ),
    "chat template": (Setup(), Setup(tokenizer="chat template")),
    "date_string": (Setup(), Setup(tokenizer="date")),
}
"""By the knob that differs: each side is prepared for itself."""

MATTERS_NOT: dict[str, tuple[Setup, Setup]] = {
    "seed": (Setup(), Setup(seed=1)),
    "seed of other sources' prompts": (Setup(source=template()), Setup(source=template(), seed=1)),
    "pack_length_tokens": (Setup(), Setup(data={"pack_length_tokens": 128})),
    "pack_split": (Setup(data={"pack_length_tokens": 64}), Setup(data={"pack_length_tokens": 64, "pack_split": True})),
    "repeat": (Setup(), Setup(source={"format": "alpaca", "repeat": 3})),
    "share": (Setup(), Setup(source={"format": "alpaca", "share": 0.3}, other={"format": "alpaca", "share": 0.7})),
    "share_of": (
        Setup(source={"format": "alpaca", "share": 0.3}, other={"format": "alpaca", "share": 0.7}),
        Setup(source={"format": "alpaca", "share": 0.3}, other={"format": "alpaca", "share": 0.7}, data={"share_of": "rows"}),
    ),
    "evaluation.fraction": (Setup(data={"evaluation": {"fraction": 0.2}}), Setup(data={"evaluation": {"fraction": 0.4}})),
    "evaluation.fraction at all": (Setup(), Setup(data={"evaluation": {"fraction": 0.2}})),
    "allow_findings": (Setup(), Setup(data={"allow_findings": ["leakage", "double_bos"]})),
    "the file that a chat template comes from": (Setup(), Setup(tokenizer="same template elsewhere")),
}
"""By the knob that differs: the second comes from the cache."""


@pytest.mark.parametrize("knob", MATTERS)
def test_what_decides_documents_is_prepared_again(knob: str, rows: Path, tmp_path: Path, base: Path) -> None:
    """Data that differ in a knob that decides documents are prepared each for themselves, and then both are in the cache."""
    (rows / "one.py").write_text(CODE)
    (rows / "two.py").write_text(CODE.replace("row['output']", "row['output'].upper()"))
    for setup in MATTERS[knob]:
        fresh = setup.prepare(rows, base, None)
        first = setup.prepare(rows, base, tmp_path / "cache")
        assert not first.from_cache
        assert same(first, fresh)
    for setup in MATTERS[knob]:
        assert setup.prepare(rows, base, tmp_path / "cache").from_cache
    assert len(whole_entries(tmp_path / "cache")) == 2


@pytest.mark.parametrize("knob", MATTERS_NOT)
def test_what_decides_no_document_is_not_prepared_again(knob: str, rows: Path, tmp_path: Path, base: Path) -> None:
    """Data that differ in a knob that decides no document are prepared once, and each is as if it had been prepared."""
    first, second = MATTERS_NOT[knob]
    first.prepare(rows, base, tmp_path / "cache")
    again = second.prepare(rows, base, tmp_path / "cache")
    assert again.from_cache
    assert same(again, second.prepare(rows, base, None))


def test_every_knob_is_in_one_of_the_tables() -> None:
    """Each key of the data section is known to decide documents, or known not to; a new one has to be entered."""
    knobs = set(DataSection.model_fields) | set(FileSource.model_fields) - {"path"}
    for prefix, model in (("clean", CleanSection), ("evaluation", EvaluationSplit), ("template", RowTemplate)):
        knobs |= {f"{prefix}.{name}" for name in model.model_fields}
    assert not knobs - MATTERS.keys() - MATTERS_NOT.keys()
    assert not MATTERS.keys() & MATTERS_NOT.keys()


def test_code_is_known_by_its_content(rows: Path, tmp_path: Path, base: Path) -> None:
    """A code file that has changed prepares again; another file with the same content doesn't."""
    (rows / "one.py").write_text(CODE)
    (rows / "two.py").write_text(CODE)
    one, two = (Setup(source={"format": "python", "code": name}) for name in ("one.py", "two.py"))
    assert not one.prepare(rows, base, tmp_path / "cache").from_cache
    assert two.prepare(rows, base, tmp_path / "cache").from_cache
    (rows / "one.py").write_text(f"{CODE}# again\n")
    assert not one.prepare(rows, base, tmp_path / "cache").from_cache


@pytest.mark.parametrize("name", ["rows.jsonl", "other.jsonl", "labelled.jsonl"])
def test_each_source_is_known_by_its_content(name: str, rows: Path, tmp_path: Path, base: Path) -> None:
    """One letter changed in any source's file prepares again, though the file's size and time are as before."""
    held_out = {"sources": [{"path": "FOLDER/labelled.jsonl", "format": "classification"}]}
    setup = Setup(source={"format": "alpaca", "columns": {"output": "note"}}, data={"evaluation": held_out})
    values = [json.loads(line) for line in (rows / name).read_text().splitlines()]
    before = (rows / name).stat()
    assert not setup.prepare(rows, base, tmp_path / "cache").from_cache
    last = values[-1]
    key = {"rows.jsonl": "note", "other.jsonl": "instruction", "labelled.jsonl": "text"}[name]
    last[key] = "X" + last[key][1:]
    write(rows / name, values)
    os.utime(rows / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (rows / name).stat().st_size == before.st_size
    again = setup.prepare(rows, base, tmp_path / "cache")
    assert not again.from_cache
    assert same(again, setup.prepare(rows, base, None))


@pytest.mark.parametrize("change", [{"rows": 9}, {"seed": 1}, {"split": "held_out"}])
def test_generated_rows_are_known_by_their_options(
    change: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows that are generated are prepared again where any option of the generator differs."""
    orders: dict[str, Any] = {"generated": "orders", "rows": 8}
    sources = [orders, orders | change, orders, orders | change]
    found = [prepare(section(source), tokenizer, seed=0, cache=tmp_path / "cache").from_cache for source in sources]
    assert found == [False, False, True, True]


def test_a_renamed_file_is_prepared_again(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Places of rows name their file: with another name it is prepared again, and with the old one it isn't."""
    (rows / "renamed.jsonl").write_bytes((rows / "rows.jsonl").read_bytes())
    made = [
        prepare(section(alpaca(rows / name)), tokenizer, seed=0, cache=tmp_path / "cache")
        for name in ("rows.jsonl", "renamed.jsonl", "rows.jsonl")
    ]
    assert [one.from_cache for one in made] == [False, False, True]
    assert [one.train[0].place for one in made] == ["rows.jsonl:1", "renamed.jsonl:1", "rows.jsonl:1"]


def test_a_file_may_be_moved_and_touched(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Neither the folder that a file lies in nor its time decides documents; the report names it where it lies now."""
    file, moved = rows / "rows.jsonl", tmp_path / "elsewhere" / "deep" / "rows.jsonl"
    prepare(section(alpaca(file)), tokenizer, seed=0, cache=tmp_path / "cache")
    os.utime(file, (0, 0))
    assert prepare(section(alpaca(file)), tokenizer, seed=0, cache=tmp_path / "cache").from_cache
    moved.parent.mkdir(parents=True)
    file.rename(moved)
    data = prepare(section(alpaca(moved)), tokenizer, seed=0, cache=tmp_path / "cache")
    assert data.from_cache
    assert data.report.lines()[0].startswith(f"{moved} (train, alpaca)")
    assert list(data.digests) == [str(moved)]


def test_the_folder_counts_where_places_name_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of two files of one name the folder is part of the place, so moving one of them prepares again."""
    for name, values in {"a": ROWS, "b": OTHER_ROWS}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", values)
    prepare(
        section(alpaca(tmp_path / "a/rows.jsonl"), alpaca(tmp_path / "b/rows.jsonl")),
        tokenizer,
        seed=0,
        cache=tmp_path / "cache",
    )
    (tmp_path / "b").rename(tmp_path / "c")
    moved = section(alpaca(tmp_path / "a/rows.jsonl"), alpaca(tmp_path / "c/rows.jsonl"))
    data = prepare(moved, tokenizer, seed=0, cache=tmp_path / "cache")
    assert not data.from_cache
    assert {document.place.split(":")[0] for document in data.train} == {"a/rows.jsonl", "c/rows.jsonl"}


@pytest.mark.parametrize("pattern", ["", "*.jsonl"])
def test_the_files_of_a_folder_count(pattern: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A file that is added to a folder or a glob, renamed in it or changed prepares again."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", ROWS)
    changes: list[Callable[[], Any]] = [
        lambda: write(folder / "b.jsonl", OTHER_ROWS),
        lambda: (folder / "b.jsonl").rename(folder / "c.jsonl"),
        lambda: write(folder / "c.jsonl", OTHER_ROWS[1:]),
        lambda: (folder / "c.jsonl").unlink(),
    ]
    data = section(alpaca(folder / pattern))
    found = [prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache]
    for change in changes:
        change()
        found += [prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache for _ in range(2)]
    assert found == [False, *[False, True] * 3, True, True]  # without c.jsonl it is as it was at first


def test_the_report_lists_what_lies_beside_the_files_now(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The report names the files of a folder that aren't read as they are now, though the rows come from the cache."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", ROWS)
    data = section(alpaca(folder))
    prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    (folder / "notes.md").write_text("no rows")
    cached = prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    assert prepare(data, tokenizer, seed=0).report.sources[0].unread_files == ["notes.md"]
    assert cached.report.sources[0].unread_files == ["notes.md"]


def test_earlier_use_of_the_tokenizer_makes_no_difference(rows: Path, tmp_path: Path, base: Path) -> None:
    """A tokenizer that has padded and truncated other texts since finds what it prepared before."""
    tokenizer, data = load_tokenizer(base), section(alpaca(rows / "rows.jsonl"))
    prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache


def test_a_failure_is_not_cached(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A bad row ends each preparation with the same message, and leaves nothing that is read as whole."""
    write(rows / "rows.jsonl", [*ROWS, {"instruction": "a", "output": None}])
    for _ in range(2):
        with pytest.raises(DataError, match=r"^rows\.jsonl:10, read as format 'alpaca': output is null"):
            prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=tmp_path / "cache")
        assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


# Several processes.

PREPARE = """
import json, signal, sys
from pathlib import Path
from data_prep.config import DataSection
from data_prep.prepare import prepare
from data_prep.tokenizer import load_tokenizer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background ignores it
base, cache, section, allowed = sys.argv[1:]
data = prepare(
    DataSection.model_validate_json(section), load_tokenizer(base), seed=0, cache=Path(cache), allow_code=[allowed],
    say=lambda line: print(line, flush=True),
)
print(json.dumps({"from_cache": data.from_cache, "tokens": [document.token_ids for document in data.train]}), flush=True)
"""
SLOW = """
import time
from pathlib import Path

HERE = Path(__file__).parent
with (HERE / "preparations").open("a") as file:
    file.write("x")

def parse(row):
    if row["text"] == "wait":
        (HERE / "waiting").touch()
        end = time.monotonic() + 60
        while not (HERE / "go").exists() and time.monotonic() < end:
            time.sleep(0.01)
    return {"text": row["text"]}
"""


@dataclass
class Slow:
    """A data set that is prepared up to its third row, and on when a file "go" is there; it counts its preparations."""

    folder: Path
    base: Path
    cache: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def section(self) -> DataSection:
        return section({"path": str(self.folder / "rows.jsonl"), "format": "python", "code": str(self.folder / "slow.py")})

    @property
    def allowed(self) -> str:
        return sha256((self.folder / "slow.py").read_bytes()).hexdigest()

    def start(self) -> subprocess.Popen[bytes]:
        """Start a process that prepares."""
        arguments = [str(self.base), str(self.cache), self.section.model_dump_json(), self.allowed]
        with self.output(len(self.started)).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", PREPARE, *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def output(self, number: int) -> Path:
        return self.folder / f"output{number}"

    def lines(self, number: int) -> list[str]:
        """What a process has printed."""
        return self.output(number).read_text().splitlines()

    def result(self, number: int) -> dict[str, Any]:
        """What a process prepared, once it has ended well."""
        assert self.started[number].wait(60) == 0, self.lines(number)
        result: dict[str, Any] = json.loads(self.lines(number)[-1])
        return result

    def until(self, done: Callable[[], object]) -> None:
        """Wait for something that processes do."""
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, [self.lines(number) for number in range(len(self.started))]
            time.sleep(0.01)

    def until_waiting(self) -> None:
        """Wait until a process stands in the middle of preparing."""
        self.until((self.folder / "waiting").exists)

    def go(self) -> None:
        (self.folder / "go").touch()

    @property
    def preparations(self) -> int:
        return len((self.folder / "preparations").read_text())

    def prepare(self, tokenizer: PreTrainedTokenizerFast, cache: Path | None) -> PreparedData:
        """Prepare in this process."""
        return prepare(self.section, tokenizer, seed=0, cache=cache, allow_code=[self.allowed])


@pytest.fixture
def slow(tmp_path: Path, base: Path) -> Iterator[Slow]:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "slow.py").write_text(SLOW)
    write(folder / "rows.jsonl", [{"text": text} for text in ("one", "two", "wait", "four")])
    made = Slow(folder, base, tmp_path / "cache")
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def test_two_processes_prepare_once(slow: Slow) -> None:
    """Of two processes that start at once one prepares; the other says that it waits, and for how long, and reads the same."""
    slow.start()
    slow.start()
    slow.until(lambda: [line for number in (0, 1) for line in slow.lines(number) if line.startswith("another process")])
    slow.go()
    results = [slow.result(number) for number in (0, 1)]
    assert slow.preparations == 1
    assert sorted(result["from_cache"] for result in results) == [False, True]
    assert results[0]["tokens"] == results[1]["tokens"]
    assert len(results[0]["tokens"]) == 4
    maker, reader = (slow.lines(number)[:-1] for number in sorted((0, 1), key=lambda number: results[number]["from_cache"]))
    assert maker == []
    assert reader[0] == "another process is preparing these data; waiting for it"
    assert reader[1].startswith("waited ")


def test_a_killed_process_leaves_nothing_that_is_read(slow: Slow, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a process leaves that is killed in the middle counts for nothing; the next one prepares and takes it away."""
    slow.start()
    slow.until_waiting()
    slow.started[0].send_signal(signal.SIGKILL)
    assert slow.started[0].wait(60) == -signal.SIGKILL
    (leftover,) = (path for path in slow.cache.iterdir() if path.is_dir())
    assert leftover.name.endswith(".unfinished")
    assert (leftover / TRAIN).is_file()
    assert entries(slow.cache) == []
    slow.go()
    data = slow.prepare(tokenizer, slow.cache)
    assert not data.from_cache
    assert same(data, slow.prepare(tokenizer, None))
    assert [path for path in slow.cache.iterdir() if path.is_dir()] == whole_entries(slow.cache)
    assert slow.prepare(tokenizer, slow.cache).from_cache


def test_one_that_waits_goes_on_for_one_that_is_killed(slow: Slow) -> None:
    """Where the process that prepares is killed, the one that waits for it prepares in its place."""
    slow.start()
    slow.until_waiting()
    slow.start()
    slow.until(lambda: [line for line in slow.lines(1) if line.startswith("another process")])
    slow.started[0].kill()
    slow.go()
    assert slow.result(1)["from_cache"] is False
    assert slow.preparations == 2
    assert [path for path in slow.cache.iterdir() if path.is_dir()] == whole_entries(slow.cache)


def test_a_process_killed_before_the_last_step(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """An entry that was written and not yet given its name is none, and the next preparation takes it away."""
    data, cached = section(alpaca(rows / "rows.jsonl")), tmp_path / "cache"
    prepare(data, tokenizer, seed=0, cache=cached)
    (entry,) = whole_entries(cached)
    unfinished = entry.rename(cached / f"{entry.name}.0123abcd.unfinished")  # as a process leaves it that is killed there
    listed = entries(cached)
    assert not prepare(data, tokenizer, seed=0, cache=cached).from_cache
    assert not unfinished.exists()
    assert listed == []


def test_an_interrupted_preparation_leaves_nothing(slow: Slow) -> None:
    """A process that is interrupted (Ctrl-C) in the middle takes its unfinished folder away."""
    slow.start()
    slow.until_waiting()
    slow.started[0].send_signal(signal.SIGINT)
    assert slow.started[0].wait(60) != 0
    assert not [path for path in slow.cache.iterdir() if path.is_dir()]


# Damage, and disks.


def shortened(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthened(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [shortened, lengthened, emptied, Path.unlink])
@pytest.mark.parametrize("name", [TRAIN, "evaluation.arrow", SUMMARY])
def test_a_damaged_entry_is_prepared_again(
    name: str, damage: Callable[[Path], None], rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A file of an entry that is shorter or longer than it was, or gone, is noticed, and the entry made anew."""
    data, cached = section(alpaca(rows / "rows.jsonl")), tmp_path / "cache"
    prepare(data, tokenizer, seed=0, cache=cached)
    (entry,) = whole_entries(cached)
    damage(entry / name)
    if name == SUMMARY and damage is lengthened:
        (entry / name).write_text((entry / name).read_text().rstrip("\0") + "}")
    assert entries(cached) == []
    again = prepare(data, tokenizer, seed=0, cache=cached)
    assert not again.from_cache
    assert same(again, prepare(data, tokenizer, seed=0))
    assert whole_entries(cached) == [entry]
    assert prepare(data, tokenizer, seed=0, cache=cached).from_cache


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a file system isn't allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("count", [400, 3000])
def test_a_disk_that_fills_up(count: int, small_disk: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A disk that fills up, early or at the end, is one DataError; nothing is left, and with more room it goes on."""
    file, cached = tmp_path / "rows.jsonl", small_disk / "cache"
    write(file, [{"text": f"{number} " * (240_000 // count)} for number in range(count)])
    data = section({"path": str(file), "format": "text"})
    with pytest.raises(DataError, match=f"^prepared data can't be written to {cached}: .*No space left on device; make room"):
        prepare(data, tokenizer, seed=0, cache=cached)
    assert entries(cached) == []
    assert [path.suffix for path in cached.iterdir()] == [".lock"]
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert not prepare(data, tokenizer, seed=0, cache=cached).from_cache
    assert prepare(data, tokenizer, seed=0, cache=cached).from_cache


@pytest.mark.parametrize("below", ["", "below"])
def test_a_cache_that_is_no_folder(below: str, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A file where the cache's folder should be, or above it, is one DataError that says what to do."""
    cached = tmp_path / "cache" / below
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=f"^prepared data can't be written to {cached}: .*set FINETUNE_CACHE to another folder"):
        prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=cached)
    assert (tmp_path / "cache").read_text() == ""
    assert entries(cached) == []
    assert clear(cached) == (0, 0)


CHANGES = {
    "a row is added": "with FILE.open('a') as file: file.write('{\"text\": \"three\"}\\n')",
    "a letter is changed": "FILE.write_text(FILE.read_text().replace('two', 'owt'))",
    "it is replaced": "NEW = FILE.with_name('new'); NEW.write_text(FILE.read_text().upper()); NEW.rename(FILE)",
    "it is deleted": "FILE.unlink()",
}


@pytest.mark.parametrize("use", ["train", "evaluation"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read(
    change: str, use: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows of a file that changes while it is read are refused, with a cache and without, and none of them is kept."""
    code = tmp_path / "change.py"
    code.write_text(
        f"from pathlib import Path\nFILE = Path(__file__).with_name('changing.jsonl')\n"
        f"def parse(row):\n    if row['text'] == 'two':\n        {change_of(change)}\n    return {{'text': row['text']}}\n"
    )
    changing, still = tmp_path / "changing.jsonl", tmp_path / "still.jsonl"
    write(still, [{"text": "still"}])
    sources = [{"path": str(path), "format": "python", "code": str(code)} for path in (changing, still)]
    train, held_out = sources if use == "train" else reversed(sources)
    data, allowed = section(train, evaluation={"sources": [held_out]}), sha256(code.read_bytes()).hexdigest()
    for cached in (None, tmp_path / "cache"):
        write(changing, [{"text": "one"}, {"text": "two"}])
        with pytest.raises(DataError, match=r"^a file changed while it was read; run again when it is whole$"):
            prepare(data, tokenizer, seed=0, cache=cached, allow_code=[allowed])
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def change_of(name: str) -> str:
    return CHANGES[name].replace("\n", "\n        ")


# Listing and clearing.


def test_entries_and_clear(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Entries are listed with their sources, documents and bytes, the newest first; clearing deletes them and what is left
    of others, says how much that was, and leaves nothing."""
    cached = tmp_path / "cache"
    assert entries(cached) == []
    assert clear(cached) == (0, 0)
    held_out = {"sources": [alpaca(rows / "other.jsonl")]}
    first = section(alpaca(rows / "rows.jsonl"), evaluation=held_out)
    second = section(alpaca(rows / "other.jsonl"))
    prepare(first, tokenizer, seed=0, cache=cached)
    os.utime(entries(cached)[0].folder, (10**9, 10**9))
    prepare(second, tokenizer, seed=0, cache=cached)
    newer, older = entries(cached)
    assert (newer.sources, newer.rows) == ([str(rows / "other.jsonl")], 6)
    assert (older.sources, older.rows) == ([str(rows / "rows.jsonl"), str(rows / "other.jsonl")], 15)
    assert older.made == 10**9
    assert abs(newer.made - time.time()) < 600
    for entry in (newer, older):
        assert entry.bytes == sum(file.stat().st_size for file in entry.folder.iterdir())
    leftover = cached / f"{'0' * 32}.01234567.unfinished"
    leftover.mkdir()
    (leftover / TRAIN).write_bytes(b"0123456789")
    (cached / "notes").write_text("not of the cache")
    assert clear(cached) == (3, newer.bytes + older.bytes + 10)
    assert [path.name for path in cached.iterdir()] == ["notes"]
    assert not prepare(first, tokenizer, seed=0, cache=cached).from_cache


def test_clear_leaves_alone_what_is_being_prepared(
    slow: Slow, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Clearing deletes the other entries, and not what another process prepares at the moment, which ends as ever."""
    prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=slow.cache)
    (other,) = entries(slow.cache)
    slow.start()
    slow.until_waiting()
    assert clear(slow.cache) == (1, other.bytes)
    assert len([path for path in slow.cache.iterdir() if path.is_dir()]) == 1
    slow.go()
    assert slow.result(0)["from_cache"] is False
    assert slow.prepare(tokenizer, slow.cache).from_cache
    assert slow.preparations == 1


def test_a_run_goes_on_with_an_entry_that_is_cleared(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Documents that are read from an entry stay readable when it is deleted, and when it is made anew."""
    data = section(alpaca(rows / "rows.jsonl"))
    prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    opened = prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    clear(tmp_path / "cache")
    assert not prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache
    assert content(opened.train) == content(prepare(data, tokenizer, seed=0).train)

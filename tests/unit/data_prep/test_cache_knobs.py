"""Prepared data on disk: what decides documents, and what doesn't."""

import json
import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.config import CleanSection, DataSection, EvaluationSplit, FileSource, RowTemplate
from data_prep.preparation import PreparedData, prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import CHATML
from tests.unit.data_prep.rows import same, section, whole_entries, write


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
        template = base.parent / "polite.jinja"
        template.write_text(CHATML.replace("{{ message['content'] }}", "Please: {{ message['content'] }}"))
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
PROMPTS = {
    "prompt": "Do: {{ instruction }}",
    "other_prompts": ["{{ instruction }}"],
    "completion": "{{ output }}",
}
CODE = "def parse(row):\n    return {'prompt': row['instruction'], 'completion': row['output']}\n"
HELD_OUT = {"sources": [{"path": "FOLDER/other.jsonl", "format": "alpaca"}]}
KEEP = {"leakage": "keep"}


def template(**changes: Any) -> dict[str, Any]:
    return {"format": "template", "template": TEMPLATE | changes}


MATTERS: dict[str, tuple[Setup, Setup]] = {
    "train": (Setup(), Setup(source={"path": "labelled.jsonl", "format": "classification"})),
    "format": (Setup(), Setup(source={"format": "auto"})),
    "columns": (
        Setup(source={"format": "alpaca", "columns": {"input": "topic"}}),
        Setup(source={"format": "alpaca", "columns": {"input": "note"}}),
    ),
    "labels": (
        Setup(
            source={
                "path": "labelled.jsonl",
                "format": "classification",
                "labels": {"bad": "no", "good": "yes"},
            }
        ),
        Setup(
            source={
                "path": "labelled.jsonl",
                "format": "classification",
                "labels": {"bad": "no", "good": "y"},
            }
        ),
    ),
    "template": (Setup(), Setup(source=template())),
    "template.prompt": (Setup(source=template()), Setup(source=template(prompt="{{ note }}"))),
    "template.completion": (Setup(source=template()), Setup(source=template(completion="{{ note }}"))),
    "template.chat": (Setup(source=template()), Setup(source=template(chat=False))),
    "template.other_prompts": (
        Setup(source=template()),
        Setup(source=template(other_prompts=["{{ note }}"])),
    ),
    "seed of other_prompts": (
        Setup(source={"format": "template", "template": PROMPTS}),
        Setup(source={"format": "template", "template": PROMPTS}, seed=1),
    ),
    "code": (
        Setup(source={"format": "python", "code": "one.py"}),
        Setup(source={"format": "python", "code": "two.py"}),
    ),
    "max_length_tokens": (Setup(), Setup(data={"max_length_tokens": 40})),
    "over_length": (
        Setup(data={"max_length_tokens": 40}),
        Setup(data={"max_length_tokens": 40, "over_length": "truncate_end"}),
    ),
    "supervise": (Setup(), Setup(data={"supervise": "all"})),
    "reasoning": (Setup(), Setup(data={"reasoning": "drop"})),
    "on_bad_row": (Setup(), Setup(data={"on_bad_row": "skip"})),
    "turn_order": (Setup(), Setup(data={"turn_order": ["drop_greeting"]})),
    "ignore_columns": (Setup(), Setup(source={"format": "alpaca", "ignore_columns": ["note"]})),
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
        Setup(
            data={
                "evaluation": {"sources": [{"path": "FOLDER/labelled.jsonl", "format": "classification"}]},
                "clean": KEEP,
            }
        ),
    ),
    "streaming": (
        Setup(data={"evaluation": HELD_OUT, "clean": KEEP}),
        Setup(data={"evaluation": HELD_OUT, "clean": KEEP, "streaming": {"buffer_rows": 4}}),
    ),
    "system": (Setup(), Setup(data={"system": "Be brief."})),
    "placeholders": (
        Setup(data={"placeholders": {"Ada": "Eve"}}),
        Setup(data={"placeholders": {"Ada": "Bob"}}),
    ),
    "loss_weights": (
        Setup(data={"loss_weights": {"blue": 2}}),
        Setup(data={"loss_weights": {"blue": 3}}),
    ),
    "max_rows": (Setup(source={"format": "alpaca", "max_rows": 5}), Setup()),
    "sample_rows": (Setup(source={"format": "alpaca", "sample_rows": 5}), Setup()),
    "sample_seed": (
        Setup(source={"format": "alpaca", "sample_rows": 5}),
        Setup(source={"format": "alpaca", "sample_rows": 5, "sample_seed": 1}),
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
    "pack_split": (
        Setup(data={"pack_length_tokens": 64}),
        Setup(data={"pack_length_tokens": 64, "pack_split": True}),
    ),
    "shuffle": (Setup(), Setup(data={"shuffle": False})),
    "attention": (
        Setup(data={"pack_length_tokens": 128}),
        Setup(data={"pack_length_tokens": 128, "attention": "leaky"}),
    ),
    "evaluation.rows": (Setup(), Setup(data={"evaluation": {"rows": 3}})),
    "evaluation_rows": (Setup(), Setup(source={"format": "alpaca", "evaluation_rows": 3})),
    "repeat": (Setup(), Setup(source={"format": "alpaca", "repeat": 3})),
    "share": (
        Setup(),
        Setup(source={"format": "alpaca", "share": 0.3}, other={"format": "alpaca", "share": 0.7}),
    ),
    "share_of": (
        Setup(source={"format": "alpaca", "share": 0.3}, other={"format": "alpaca", "share": 0.7}),
        Setup(
            source={"format": "alpaca", "share": 0.3},
            other={"format": "alpaca", "share": 0.7},
            data={"share_of": "rows"},
        ),
    ),
    "evaluation.fraction": (
        Setup(data={"evaluation": {"fraction": 0.2}}),
        Setup(data={"evaluation": {"fraction": 0.4}}),
    ),
    "evaluation.fraction at all": (Setup(), Setup(data={"evaluation": {"fraction": 0.2}})),
    "allow_findings": (Setup(), Setup(data={"allow_findings": ["leakage", "double_bos"]})),
    "the file that a chat template comes from": (Setup(), Setup(tokenizer="same template elsewhere")),
}
"""By the knob that differs: the second comes from the cache."""


@pytest.mark.parametrize("knob", MATTERS)
def test_what_decides_documents_is_prepared_again(knob: str, rows: Path, tmp_path: Path, base: Path) -> None:
    """Data that differ in a knob that decides documents are prepared each for themselves, and then both are
    in the cache."""
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
def test_what_decides_no_document_is_not_prepared_again(
    knob: str, rows: Path, tmp_path: Path, base: Path
) -> None:
    """Data that differ in a knob that decides no document are prepared once, and each is as if it had been
    prepared."""
    first, second = MATTERS_NOT[knob]
    first.prepare(rows, base, tmp_path / "cache")
    again = second.prepare(rows, base, tmp_path / "cache")
    assert again.from_cache
    assert same(again, second.prepare(rows, base, None))


def test_every_knob_is_in_one_of_the_tables() -> None:
    """Each key of the data section is known to decide documents, or known not to; a new one has to be
    entered."""
    knobs = set(DataSection.model_fields) | set(FileSource.model_fields) - {"path"}
    for prefix, model in (
        ("clean", CleanSection),
        ("evaluation", EvaluationSplit),
        ("template", RowTemplate),
    ):
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
    """One letter changed in any source's file prepares again, though the file's size and time are as
    before."""
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

"""A format that is added: docs/extending_formats.md as it stands, written to a file and named in the
tuple."""

import importlib.util
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from data_prep import formats
from data_prep.config import DataSection, FileSource
from data_prep.errors import DataError
from data_prep.formats.base import Format, Option
from data_prep.formats.tables import column_table, format_table
from data_prep.preparation import PreparedData, prepare
from tests.support.manual import example_of

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = DOCS / "extending_formats.md"
ROWS = [{"question": f"{n} + 1?", "choices": ["0", str(n + 1)], "answer": 1} for n in range(3)]


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Format:
    """The page's format: its file written, imported, and one more in the tuple."""
    path = tmp_path / "multiple_choice.py"
    path.write_text(example_of("extending_formats"))
    spec = importlib.util.spec_from_file_location("multiple_choice", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, module.FORMAT))
    assert isinstance(module.FORMAT, Format)
    return module.FORMAT


def prepared(
    path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str = "multiple_choice", **more: object
) -> PreparedData:
    source = {"path": str(path), "format": format_name} | more
    return prepare(DataSection.model_validate({"train": [source]}), tokenizer, seed=0)


def written(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["multiple_choice", "auto"])
def test_rows_are_prepared(
    name: str, added: Format, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """By its name, or detected: a document per row, whose answer is learned."""
    data = prepared(written(tmp_path, ROWS), tokenizer, name)
    assert len(data.train) == 3
    assert data.report.sources[0].format == "multiple_choice"
    learned = [
        tokenizer.decode([token for token, own in zip(row.token_ids, row.supervised, strict=True) if own])
        for row in data.train
    ]
    assert all("B" in text and "A" not in text for text in learned)
    assert "0 + 1?\nA. 0\nB. 1" in tokenizer.decode(data.train[0].token_ids)


def test_texts_are_read_and_columns_mapped(
    added: Format, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """CSV holds lists and numbers as texts, and the rows may have other names; a column that it doesn't read
    is counted."""
    path = tmp_path / "rows.csv"
    path.write_text('asked,choices,answer,id\n1 + 1?,"[""1"", ""2""]",1,7\n')
    data = prepared(path, tokenizer, columns={"question": "asked"})
    assert "1 + 1?\nA. 1\nB. 2" in tokenizer.decode(data.train[0].token_ids)
    assert "id" in data.report.sources[0].unread_columns


def test_bad_rows_are_refused(added: Format, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """In the words in which rows of every format are refused: the place, the format, the column."""
    start = "rows.json row 1, read as format 'multiple_choice': "
    for row, problem in [
        ({"question": "a", "answer": 0}, "no column 'choices'; the row has 'question', 'answer'"),
        (
            {"question": "a", "choicse": ["b"], "answer": 0},
            "no column 'choices'; the row has 'question', 'choicse', 'answer'; did you",
        ),
        (
            {"question": "a", "choices": ["b"], "answer": 1},
            "answer is 1, and there are 1 choices, counted from 0",
        ),
        ({"question": "a", "choices": ["b"], "answer": "one"}, "answer is 'one'"),
        (
            {"question": "a", "choices": ["b"], "answer": 0, "history": ["c"]},
            "the column 'history' may change what is learned",
        ),
    ]:
        with pytest.raises(DataError, match=re.escape(start + problem)):
            prepared(written(tmp_path, [row]), tokenizer)


def test_sources_are_checked(added: Format) -> None:
    """Columns and options are those of the format; a name that is close to the new one is found."""
    for more, problem in [
        (
            {"columns": {"choises": "a"}},
            "format multiple_choice has no column 'choises', it reads question, choices, answer; did you "
            "mean",
        ),
        ({"labels": {"0": "a"}}, "only format classification has labels; this one is multiple_choice"),
        (
            {"template": {"prompt": "a", "completion": "b"}},
            "only format template has one; this one is multiple_choice",
        ),
        ({"code": "parse.py"}, "only format python has code; this one is multiple_choice"),
        ({"format": "multiple_choise"}, "Input should be 'auto', 'alpaca', "),
    ]:
        with pytest.raises(ValidationError, match=re.escape(problem)):
            FileSource.model_validate({"path": "rows.json", "format": "multiple_choice"} | more)


def test_an_option_can_have_several_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is named where it is set for another one, and one that needs it says how it is written."""
    graded = Format(
        "graded",
        "",
        formats.named("text").columns,
        formats.named("text").parse,
        (Option("labels", needed="`labels: {}`"),),
    )
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, graded))
    with pytest.raises(
        ValidationError, match="only formats classification and graded have labels; this one is text"
    ):
        FileSource(path="rows.json", format="text", labels={"0": "a"})
    assert FileSource(path="rows.json", format="graded", labels={"0": "a"}).labels == {"0": "a"}


def test_the_recipe_knows_it(added: Format, tmp_path: Path) -> None:
    """A recipe may name it, a typo is refused at its place with a guess, and the JSON schema and the manual's
    table have it."""
    from finetune.errors import RecipeError
    from finetune.recipe.load import load_recipe

    written(tmp_path, ROWS)
    recipe = tmp_path / "recipe.yaml"
    text = (
        "model: {base: owner/name}\ndata:\n  train: [{path: rows.json, format: multiple_choice}]\ntrain: "
        "{epochs: 1}\n"
    )
    recipe.write_text(text)
    assert load_recipe(recipe).recipe.data.train[0].format == "multiple_choice"
    recipe.write_text(text.replace("multiple_choice", "multiple_choise"))
    with pytest.raises(
        RecipeError,
        match=r"recipe.yaml:3:37 .*got 'multiple_choise', expected .*; did you mean multiple_choice\?",
    ):
        load_recipe(recipe)
    assert "multiple_choice" in FileSource.model_json_schema()["properties"]["format"]["enum"]
    assert f"| `multiple_choice` | {added.row} |" in format_table()
    assert "| `multiple_choice` | `question` + `choices` + `answer` | |" in column_table()


def test_the_manual_has_the_tables() -> None:
    """docs/data.md lists the formats and their columns as they are: finetune/manual.py writes them."""
    assert format_table() in (DOCS / "data.md").read_text()
    assert column_table() in (DOCS / "data.md").read_text()


@pytest.mark.parametrize("name", ["multiple_choice", "auto"])
def test_no_row_of_another_version_is_taken_from_the_cache(
    name: str,
    added: Format,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A format that is raised to another version prepares its rows again, and other formats' stay cached."""
    path, cache = written(tmp_path, ROWS), tmp_path / "cache"
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([{"text": "a b c"}]))
    section, other = (
        DataSection.model_validate({"train": [{"path": str(file), "format": format_name}]})
        for file, format_name in ((path, name), (plain, "text"))
    )
    for one in (section, other):
        assert [prepare(one, tokenizer, seed=0, cache=cache).from_cache for _ in range(2)] == [False, True]
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS[:-1], replace(added, version=1)))
    assert [prepare(section, tokenizer, seed=0, cache=cache).from_cache for _ in range(2)] == [False, True]
    assert prepare(other, tokenizer, seed=0, cache=cache).from_cache


def test_the_page_names_what_a_format_says() -> None:
    """Each field in its table is one of Format's, and each of Format's is in it."""
    table = [line.rpartition(" | ")[2] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert set(re.findall(r"`(\w+)`", "\n".join(table))) == {field.name for field in fields(Format)}

"""Axolotl's data sets: which turns and ends of turns are learned, templates of their own, files."""

from pathlib import Path

import pytest

import finetune
from finetune.conversion import Conversion, ConvertError

AXOLOTL = "base_model: a/b\nadapter: lora\nsequence_len: 64\nval_set_size: 0\n"


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text("{}\n")
    Path("y.jsonl").write_text("{}\n")


def converted(*sources: str, more: str = "") -> Conversion:
    Path("a.yaml").write_text(f"{AXOLOTL}{more}datasets:\n" + "".join(f"  - {{{row}}}\n" for row in sources))
    return finetune.convert("a.yaml")


def changes(conversion: Conversion) -> list[str]:
    return [line.key for line in (*conversion.otherwise, *conversion.dropped) if line.changes]


@pytest.mark.parametrize(
    ("option", "same"),
    [
        ("train_on_eos: turn", True),
        ("train_on_eos: null", True),
        ("train_on_eos: all", False),
        ("train_on_eos: last", False),
        ("train_on_eos: none", False),
        ("train_on_eot: all", False),
        ("roles_to_train: [assistant]", True),
        ("roles_to_train: [gpt]", True),
        ("roles_to_train: [user, assistant]", False),
        ("roles_to_train: []", False),
        ("message_field_content: text", False),
        ("message_field_content: value", True),
        ("shards: 1", True),
        ("shards: 10", False),
    ],
)
def test_what_is_learned_of_a_data_set_is_the_same_or_named(option: str, same: bool) -> None:
    """The ends of the turns that are learned, and all rows, as here; each other value says what changes."""
    key = "datasets.0." + option.partition(":")[0]
    assert changes(converted(f"path: c/d, type: chat_template, {option}")) == ([] if same else [key])


def test_an_unknown_end_of_turns_is_refused() -> None:
    """With its place and the values that there are."""
    with pytest.raises(ConvertError, match="train_on_eos: got 'banana', expected one of"):
        converted("path: c/d, type: chat_template, train_on_eos: banana")


@pytest.mark.parametrize(
    ("sources", "more", "template", "same"),
    [
        (["path: c/d, type: alpaca"], "", "alpaca", True),
        (["path: c/d, type: alpaca"], "chat_template: llama3\n", "alpaca", True),
        (["path: c/d, type: alpaca", "path: e/f, type: chat_template"], "", "alpaca", False),
        (["path: c/d, type: alpaca", "path: e/f, type: chat_template"], "chat_template: llama3\n", "alpaca", False),
        (["path: c/d, type: sharegpt, conversation: chatml"], "", "chatml", True),
        (["path: c/d, type: chat_template, chat_template: chatml"], "chat_template: llama3\n", "chatml", True),
        (["path: c/d, type: chat_template"], "chat_template: llama3\n", "llama3", True),
        (["path: c/d, type: alpaca:chat"], "", "alpaca", False),
    ],
    ids=range(8),
)  # fmt: skip
def test_rows_are_written_with_the_template_that_writes_them_there(
    sources: list[str], more: str, template: str, same: bool
) -> None:
    """A data set's own template goes before the file's, and a type's before both; a second one is named."""
    conversion = converted(*sources, more=more)
    assert f"chat_template: {template} " in conversion.recipe
    assert (changes(conversion) == []) == same


def test_several_files_of_one_data_set_are_sources_before_the_next() -> None:
    """None of them takes the place of another."""
    recipe = converted(
        "path: json, data_files: [x.jsonl, y.jsonl], type: alpaca", "path: c/d, type: alpaca"
    ).recipe
    assert [line.split()[2] for line in recipe.splitlines() if line.strip().startswith("- ")] == [
        "x.jsonl",
        "y.jsonl",
        "c/d",
    ]


def test_the_column_of_a_pre_training_set_is_kept() -> None:
    """text_column is the column that is learned."""
    Path("a.yaml").write_text(
        "base_model: a/b\nsequence_len: 64\npretraining_dataset: [{path: c/d, type: pretrain, text_column: body}]\n"
    )
    conversion = finetune.convert("a.yaml")
    assert "columns: {text: body}" in conversion.recipe
    assert changes(conversion) == []


def test_the_revision_of_a_data_set_is_kept() -> None:
    """It is written, and not only said to be."""
    assert "revision: abc" in converted("path: c/d, type: alpaca, revision: abc").recipe

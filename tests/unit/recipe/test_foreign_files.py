"""Files that a recipe names, and locks, as somebody else made them: what is shown of them, and what they may
cost."""

import os
import time
from pathlib import Path

import pytest

from finetune.engines.launch.configs import find_config
from finetune.errors import LaunchError, RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.reading import yaml_tree
from finetune.recipe.schema import Recipe

RECIPE = "extends: %s\nmodel: {base: owner/name}\ndata: {train: [{generated: orders}]}\n"
SHADOW = "root:$y$j9T$s3cr3t:20228:0:99999:7:::\ndaemon:*:20228:0:99999:7:::\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(path: str = "r.yaml") -> list[str]:
    """What is wrong with a recipe."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return [f"{problem.place} {problem.path} {problem.message}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    "content",
    [
        SHADOW, "s3cr3t\n", "TOKEN=s3cr3t\nOTHER=*s3cr3t\n", "[s3cr3t]\n", "machine a login b password s3cr3t\n", "",
        "password: 2020-01-01\nuser: "
        "s3cr3t\n", "s3cr3t: &a [*b]\n", "key: !s3cr3t 1\nkey: 2\n", '{"s3cr3t": 1', "- s3cr3t\n",
        "kind: Secret\napiVersion: v1\nmetadata: {name: s3cr3t}\ndata: {s3cr3t: "
        "1}\n", "s3cr3t:\tx\n", "s3cr3t: %\n",
        "model s3cr3t:\n  data: "
        "1\n", "models:\n  s3cr3t: 1\n", "x: s3cr3t\n" * 20_000, "s3cr3t: '\0'", "s3cr3t: \x85 [",
    ],
)  # fmt: skip
def test_nothing_is_shown_of_a_file_that_is_no_recipe(folder: Path, content: str) -> None:
    """Whether it can be read as YAML or not: one line, at the extends that names it."""
    (folder / "other").write_text(content)
    (folder / "r.yaml").write_text(RECIPE % "other")
    assert problems() == [
        f"r.yaml:1:10 extends {folder / 'other'} is no recipe: it has other keys than sections (model, data, "
        "...), or none"
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("train: {epohcs: 1}\n", "other:1:9 train.epohcs unknown key; did you mean epochs?"),
        ("modle: {}\ntrain: {seed: 1}\n", "other:1:1 modle unknown key; did you mean model?"),
        ("train:\n  seed: [1\nx: y: z\n", "other:3:2 "), ("{train: {seed: a}}\n", "other:1:16 train.seed got the text 'a'"),
        ("\ufefftrain: {seed: 1\n", "other:2:1 "), ("extends: nowhere\n", "other:1:10 extends no such file"),
        ("train:\n  seed: 2020-01-01\n", "other:2:9 train.seed got the date 2020-01-01"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_that_is_extended_is_shown(folder: Path, content: str, found: str) -> None:
    """At its own place, also where its YAML can't be read."""
    (folder / "other").write_text(content)
    (folder / "r.yaml").write_text(RECIPE % "other")
    assert problems()[0].startswith(found)


def test_pipes_and_devices_are_refused_at_once(folder: Path) -> None:
    """As the recipe, as what it extends, as a template, as code and as an accelerate file."""
    os.mkfifo(folder / "pipe.yaml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml"):
        assert problems(name) == [
            f"{name}  this is a pipe or a device, expected a recipe's file: looked at {folder / name}"
        ]
        (folder / "r.yaml").write_text(RECIPE % name)
        (found,) = problems()
        assert found.startswith("r.yaml:1:10 extends is a ")
        assert found.endswith(f"not a file; give a file: {folder / name}")
        (folder / "r.yaml").write_text(
            f"model: {{base: owner/name, chat_template: {name}}}\n"
            f"data: {{train: [{{path: {name}, format: alpaca}}, {{path: {name}, format: python, code: "
            f"{name}}}]}}\n"
        )
        assert [line.split(":")[0] for line in problems()] == ["r.yaml"] * 4
        with pytest.raises(LaunchError, match="expected one of"):
            find_config(name)


BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        BOMB, "recipe: " + "[" * 5000, "recipe: {a: " + "x" * 17_000_000 + "}", "recipe: [" + "1, " * 5000 + "]",
        "recipe: !!python/name:os.system\n", "recipe: {}\nlock_version: 3\nrecipe: {}\n", "\0", "recipe: \"\\UFFFFFFFF\"\n",
    ],
    ids=["aliases", "depth", "size", "values", "tag", "a key twice", "NUL", "escape"],
)  # fmt: skip
def test_a_lock_is_read_within_bounds(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In little time, and with one message; an accelerate file too."""
    for reader in (yaml_tree._Reader, yaml_tree._LockReader):
        monkeypatch.setattr(reader, "most_nodes", 1000)
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises((RecipeError, OSError)):
        read_lock(path)
    with pytest.raises((LaunchError, OSError)):
        find_config(str(path))
    assert time.monotonic() - started < 60


def test_a_lock_whose_recipe_is_wrong_is_one_line(tmp_path: Path) -> None:
    """The first value that is wrong is named, and how many there are; pydantic's own account of all has
    pages."""
    text = Lock(
        Recipe.model_validate({"model": {"base": "b"}, "data": {"train": [{"path": "r", "format": "text"}]}}),
        "c",
        "",
    ).to_yaml()
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(text.replace("max_length_tokens: ", "max_length_tokens: many # "))
    with pytest.raises(RecipeError) as caught:
        read_lock(path)
    assert "data.max_length_tokens is 'many': it should be a valid integer" in str(caught.value)
    assert "\n" not in str(caught.value)
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("  data:")))
    with pytest.raises(RecipeError):
        read_lock(path)


@pytest.mark.parametrize(
    "rules", ["2", "{preparation: [true]}", "{schedule: two}", "{training: true}", "{nobody_knows: 1}"]
)
def test_a_lock_with_rules_that_are_none(tmp_path: Path, rules: str) -> None:
    """The versions of the ways to carry out a recipe are whole numbers, by names that are known."""
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(
        f"lock_version: 3\nrules: {rules}\ncommand: c\ncreated: c\nrecipe: {{model: {{base: b}}}}\n"
    )
    with pytest.raises(RecipeError, match=r"rules|nobody_knows"):
        read_lock(path)


def test_a_lock_reads_back_as_it_was(tmp_path: Path) -> None:
    """With thousands of values, their origins, texts of every kind, and metrics that are no numbers."""
    sources = [
        {"path": f"/rows/{n}.jsonl", "format": "classification", "labels": {"0": "no", "1": "yes"}}
        for n in range(1000)
    ]
    texts = [
        "2026-01-01",
        "1_000",
        "0x1f",
        "null",
        "~",
        "a: b",
        "# c",
        "'",
        "\ud7ff\U0001f600",
        "- d",
        "\t",
        "x" * 5000,
        ".nan",
    ]
    recipe = Recipe.model_validate(
        {
            "model": {"base": "a/b"},
            "data": {"train": sources},
            "evaluate": {"labels": texts},
            "train": {"learning_rate": 3e-05},
        }
    )
    origins = {f"data.train.{n}.path": "r.yaml:1" for n in range(5000)}
    final = {
        "final/loss": float("nan"),
        "final/low": float("-inf"),
        "final/high": float("inf"),
        "final/one": 1e-12,
    }
    lock = Lock(recipe, "c", "2026-11-26T00:00:00+00:00", origins=origins, final=final)
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(lock.to_yaml())
    found = read_lock(path)
    assert (found.recipe, found.origins, found.created) == (recipe, origins, lock.created)
    assert repr(found.final) == repr(final)

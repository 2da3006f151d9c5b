"""Paths of data in a recipe: files, folders and globs."""

import gzip
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import load_recipe

RECIPE = "model: {base: owner/name}\ndata:\n  train:\n    - {path: %s, format: alpaca}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe's place beside a folder of data."""
    (tmp_path / "data/empty").mkdir(parents=True)
    (tmp_path / "data/a.jsonl").write_text("{}")
    (tmp_path / "data/b.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    (tmp_path / "data/notes.md").write_text("x")
    for name in (
        "data/held/test.jsonl",
        "clone/data/train.jsonl",
        "splits/test/a.jsonl",
        "splits/train/a.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


def load(folder: Path, path: str) -> str:
    """The path of the first source in a recipe that gives it as `path`."""
    (folder / "r.yaml").write_text(RECIPE % path)
    return str(getattr(load_recipe(folder / "r.yaml").recipe.data.train[0], "path", None))


@pytest.mark.parametrize(
    "path", ["data/a.jsonl", "data/b.csv.gz", "data", "data/*.jsonl", '"**/*.gz"', '"./data/[ab].*"']
)
def test_files_folders_and_globs(path: str, folder: Path) -> None:
    """A file, a folder and a glob are all looked up from the recipe's folder, and become absolute."""
    assert load(folder, path) == str(folder / path.strip('"'))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("data/absent.jsonl", "no such file: looked at {folder}/data/absent.jsonl"),
        ("data/*.parquet", "no file matches the glob {folder}/data/*.parquet"),
        ("data/*", "notes.md ends in '.md', expected .json, "),
        (
            "data/notes.md",
            "notes.md ends in '.md', expected .json, .jsonl, .csv, .tsv, .parquet, .arrow, .txt, each also",
        ),
        (
            "data/empty",
            "no file in the folder {folder}/data/empty can be read: it is empty; expected files that end in "
            ".json",
        ),
        (
            "data/held",
            "the name of every file of {folder}/data/held says that it is held out (held/test.jsonl); to "
            "train on",
        ),
        (
            "splits",
            "its data are in {folder}/splits/train, {folder}/splits/test: write path: {folder}/splits/train, "
            "or",
        ),
        (
            "clone",
            "can be read: it holds data/; its data are in a subfolder: write path: {folder}/clone/data",
        ),
        ('""', "no such file: looked at {folder}"),
    ],
)
def test_paths_without_data(path: str, problem: str, folder: Path) -> None:
    """A path with nothing to read is a problem of the recipe, at the place where it is written."""
    with pytest.raises(RecipeError) as error:
        load(folder, path)
    (found,) = error.value.problems
    assert (found.path, found.place.split(":")[1]) == ("data.train.0.path", "4")
    assert problem.format(folder=folder) in found.message


def test_held_out_files_are_there_to_evaluate_on(folder: Path) -> None:
    """A folder with nothing but held-out files is one to evaluate on."""
    evaluation = "  evaluation: {sources: [{path: data/held, format: alpaca}]}\n"
    (folder / "r.yaml").write_text(RECIPE % "data/a.jsonl" + evaluation)
    assert load_recipe(folder / "r.yaml").recipe.data.held_out[0].path == str(folder / "data/held")  # type: ignore[union-attr]


def test_extends_takes_the_name_of_a_shipped_recipe(tmp_path: Path) -> None:
    """As `finetune train` does; a file of that name beside the recipe comes first, and another name is no
    such file."""
    own = tmp_path / "mine.yaml"
    own.write_text("extends: tasks/sentiment_head\ntrain: {epochs: 3}\n")
    recipe = load_recipe(str(own)).recipe
    assert recipe.model.head is not None
    assert recipe.train.epochs == 3
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sentiment_head").write_text("extends: ../other.yaml\n")
    (tmp_path / "other.yaml").write_text("model: {base: owner/name}\ndata: {train: [{generated: orders}]}\n")
    assert load_recipe(str(own)).recipe.model.head is None
    own.write_text("extends: tasks/sentiment_hed\n")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(str(own))


@pytest.mark.parametrize("adapter", ["run/adapter", "run"])
def test_an_adapter_or_a_run_as_the_base_says_what_to_do(adapter: str, folder: Path) -> None:
    """Neither is a base: it is merged, or trained further."""
    (folder / adapter).mkdir(parents=True)
    (folder / adapter / "adapter_config.json").write_text("{}")
    (folder / "r.yaml").write_text((RECIPE % "data/a.jsonl").replace("owner/name", "run"))
    with pytest.raises(
        RecipeError, match=r"model\.base .*finetune merge\), or trained further \(adapter\.continue_from"
    ):
        load_recipe(folder / "r.yaml")

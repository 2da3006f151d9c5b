"""finetune data: prepared data that are found again, listed and cleared."""

import re
from pathlib import Path

import pytest

from tests.support.cli import FinetuneHere
from tests.unit.cli.audits import MIXED, Recipes, alpaca, mixed


def test_prepared_data_are_found_again(data: FinetuneHere, recipe: Recipes) -> None:
    """A second audit of the same rows comes from the cache, says so, and says the same; a changed row is
    prepared anew."""
    name = mixed(recipe)
    first, second = data(name), data(name)
    assert second.lines == ["from the cache: these data were prepared before", *first.lines]
    as_json = data(name, "--json")
    assert as_json.stderr == "from the cache: these data were prepared before\n"
    assert as_json.json["ok"]
    recipe.rows("rows.jsonl", [*MIXED, alpaca(1)[0]])
    assert "10 of 14 rows kept" in data(name).lines[0]


def test_the_cache_is_listed_and_cleared(data: FinetuneHere, recipe: Recipes) -> None:
    """--cache list names each entry with its documents and sources, newest first; clear deletes them and
    nothing else."""
    listed = data("--cache", "list")
    assert listed.lines[-1].startswith("0 prepared data sets, ")
    assert data("--cache", "list", "--json").json == {
        "folder": str(recipe.folder / "cache" / "data"),
        "entries": [],
    }
    data(mixed(recipe))
    data(recipe({"generated": "orders", "rows": 5}))
    kept = recipe.folder / "cache" / "bases" / "x"
    kept.mkdir(parents=True)
    first, second, last = data("--cache", "list").lines
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +[\d.]+ MB +5 documents  orders/train", first)
    assert re.search(r" 9 documents  .*rows\.jsonl$", second)
    assert last.startswith("2 prepared data sets, ")
    entries = data("--cache", "list", "--json").json["entries"]
    assert [entry["rows"] for entry in entries] == [5, 9]
    assert all(Path(entry["folder"]).is_dir() for entry in entries)
    cleared = data("--cache", "clear", "--json").json
    assert cleared["deleted"] == 2
    assert cleared["bytes"] == sum(entry["bytes"] for entry in entries) > 0
    assert data("--cache", "list").lines[-1].startswith("0 prepared data sets, ")
    assert kept.is_dir()
    data(mixed(recipe))
    folder = recipe.folder / "cache" / "data"
    assert data("--cache", "clear").lines == [f"deleted 1 prepared data sets, 0.0 MB, from {folder}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cache", "lst"),
        ("--cache", ""),
        ("--cache", "list", "recipe.yaml"),
        ("recipe.yaml", "--cache", "clear"),
        ("recipe.yaml", "data.max_length_tokens=64", "--cache", "clear"),
        (),
        ("--json",),
    ],
)
def test_a_cache_or_a_recipe(arguments: tuple[str, ...], data: FinetuneHere, recipe: Recipes) -> None:
    """A wrong word for --cache, one beside a recipe, and neither of the two end with 2 and the words that are
    expected."""
    mixed(recipe)
    printed = data(*arguments, code=2)
    assert "finetune data --cache list" in printed.stdout + printed.stderr
    assert not (recipe.folder / "cache").exists()


@pytest.mark.parametrize(
    "options", [("--rows", "3"), ("--preview", "2"), ("--html", "audit.html"), ("--allow-code", "0" * 64)]
)
def test_an_option_beside_the_cache(options: tuple[str, ...], data: FinetuneHere, recipe: Recipes) -> None:
    """An option that --cache has no use for is refused, not ignored."""
    assert options[0] in data("--cache", "list", *options, code=2).stderr

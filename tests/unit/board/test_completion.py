"""What the editor offers at the caret."""

import pytest

from finetune.board.completion import complete
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from finetune.recipe.shipped import shipped_recipes

ROWS = "data:\n  train:\n"


def offered(text: str) -> list[str]:
    """What may come at the | of a text, as it is written there."""
    caret = text.index("|")
    return [option.text for option in complete(text.replace("|", ""), caret)[1]]


def test_at_the_top_sections_are_offered() -> None:
    """All of them, but those that are there."""
    assert {name.rstrip(": ") for name in offered("|")} == {"extends", *Recipe.model_fields}
    assert "train:" not in offered("train:\n  epochs: 1\n|")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  learning_r|", ["learning_rate: "]),
        ("adapter:\n  method: |", ["lora", "qlora", "full", "miss", "oft", "vera", "loha"]),
        ("adapter:\n  method: q|", ["qlora"]),
        ("data:\n  shuffle: f|", ["false"]),
        (f"{ROWS}    - path: a\n      form|", ["format: "]),
        (f"{ROWS}  - path: a\n    form|", ["format: "]),
        (f"{ROWS}    - form|", ["format: "]),
        (f"{ROWS}    - {{path: a, form|", ["format: "]),
        (f"{ROWS}    - {{path: a, format: sh|", ["sharegpt"]),
        ("data:\n  clean: {dup|", ["duplicates: "]),
        ("objective:\n  kind: kto\n  teach|", []),
        ("objective:\n  kind: distill\n  teacher_|", ["teacher_model: ", "teacher_quantization: "]),
        ("model:\n  base: x # a comm|", []),
        ("model:\n  base: 'x|", []),
        ("nothing:\n  like|", []),
    ],
)  # fmt: skip
def test_what_fits_is_offered(text: str, expected: list[str]) -> None:
    """Keys of the section around the caret, or the key's values, by the schema."""
    assert offered(text) == expected


def test_a_key_that_is_there_is_not_offered_again() -> None:
    """Before the caret or after it."""
    found = offered("train:\n  epochs: 1\n  |\n  seed: 3\nmodel:\n  base: x\n")
    assert not {"epochs: ", "seed: "} & set(found)
    assert "max_steps: " in found


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_each_key_of_a_shipped_recipe_would_have_been_offered(name: str) -> None:
    """Where it is, if it were not yet written; names that a recipe gives are nobody's to offer."""
    text = shipped_recipes()[name].read_text()
    lines, at, missed = text.split("\n"), 0, []
    for line in lines:
        key, colon, _ = line.strip().removeprefix("- ").partition(":")
        if (
            colon
            and key.isidentifier()
            and not line.lstrip().startswith("#")
            and "{" not in line.partition(":")[0]
        ):
            begin = at + line.index(key)
            without = text[:begin] + text[at + len(line) :]
            options = [option.text.rstrip(": ") for option in complete(without, begin)[1]]
            missed += [] if key in options or not options else [line]
        at += len(line) + 1
    assert load_recipe(name)
    assert missed == []


def test_a_completion_says_what_it_means() -> None:
    """And what the value is without it."""
    _, (option,) = complete("train:\n  global_batch_s", len("train:\n  global_batch_s"))
    assert option.about.startswith("Packs per optimizer step")
    assert option.about.endswith("(8 when absent)")

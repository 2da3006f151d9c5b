"""What the user wrote, and what a rule has against it."""

from collections.abc import Iterator

from finetune.recipe.schema import Recipe

RuleProblem = Iterator[tuple[str, str]]
"""(dotted path, message) of each mistake."""

Given = set[str]
"""The dotted paths that the user wrote."""

NOTHING = (None, False, 0, "", (), "auto", "default")
"""Values that ask for nothing: what they say holds wherever they stand."""


def asked(recipe: Recipe, given: Given, path: str) -> bool:
    """Whether the user asked for something by a knob of a section: wrote it, with a value that isn't one of
    NOTHING. A value that equals the default is asked for like any other."""
    section, knob = path.split(".")
    return path in given and getattr(getattr(recipe, section), knob) not in NOTHING

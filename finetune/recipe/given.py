"""What the user wrote, and what a rule has against it."""

import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches

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


def near(name: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant; None where the name is known itself, or far from all."""
    if name in known:
        return None
    close = get_close_matches(re.sub(r"[^a-z0-9_]", "", name.lower()), known, n=1, cutoff=0.8)
    return close[0] if close else None

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
"""Defaults that ask for nothing: what they say holds wherever they stand."""


def asked(recipe: Recipe, given: Given, path: str) -> bool:
    """Whether the user asked for something by a knob of a section: wrote it, and not with a default that is
    one of NOTHING. Any other value that equals the default is asked for like the rest."""
    section, knob = path.split(".")
    values = getattr(recipe, section)
    value = getattr(values, knob)
    default = type(values).model_fields[knob].get_default(call_default_factory=True)
    return path in given and not (value in NOTHING and value == default)


def near(name: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant; None where the name is known itself, or far from all."""
    if name in known:
        return None
    close = get_close_matches(re.sub(r"[^a-z0-9_]", "", name.lower()), known, n=1, cutoff=0.8)
    return close[0] if close else None

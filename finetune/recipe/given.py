"""What the user wrote, and what a rule has against it."""

from collections.abc import Iterator

from finetune.recipe.schema import Recipe

RuleProblem = Iterator[tuple[str, str]]
"""(dotted path, message) of each mistake."""

Given = set[str]
"""The dotted paths that the user wrote."""


def asked(recipe: Recipe, given: Given, path: str) -> bool:
    """Whether the user asked for more than the default: to write the default, as `check` prints it, asks for
    nothing."""
    section, knob = path.split(".")
    values = getattr(recipe, section)
    return path in given and getattr(values, knob) != type(values).model_fields[knob].get_default(
        call_default_factory=True
    )

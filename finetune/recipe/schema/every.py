"""How often something is done during a training: in steps, epochs, a share of all steps, or never."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

NEVER = "never"
EVERY_WORDS = "a number of steps (50), epochs (1 epoch, 0.5 epochs), a share of all steps (10%) or never"
NUMBER = r"(?=.*[1-9])\d{1,9}(?:\.\d{1,3})?"
PATTERN = re.compile(rf"(?P<number>{NUMBER}) ?(?P<unit>%|steps?|epochs?)")


def _every(value: Any) -> Any:
    """A number of steps as a whole number, everything else as it is written. Raises ValueError for what is
    neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"got {value}, expected at least 1")
        return value
    if value == NEVER:
        return value
    match = PATTERN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"got {value!r}, expected {EVERY_WORDS}")
    number = match["number"]
    if match["unit"].startswith("step"):
        if "." in number:
            raise ValueError(f"got {value!r}, expected a whole number of steps")
        return int(number)
    if match["unit"] == "%" and float(number) > 100:
        raise ValueError(f"got {value!r}, expected at most 100%")
    return value


Every = Annotated[
    int | str,
    BeforeValidator(_every),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": "^(never|[0-9.]+ ?(%|steps?|epochs?))$"},
            ]
        }
    ),
]
"""A whole number of steps, "N epochs", "N%" or "never"; "N steps" becomes the whole number."""


def epochs_of(every: int | str | None) -> float | None:
    """How many epochs lie between two times; None where it isn't said in epochs."""
    match = PATTERN.fullmatch(every) if isinstance(every, str) else None
    return float(match["number"]) if match and match["unit"].startswith("epoch") else None


def percent_of(every: int | str | None) -> float | None:
    """How many percent of all steps lie between two times; None where it isn't said in percent."""
    match = PATTERN.fullmatch(every) if isinstance(every, str) else None
    return float(match["number"]) if match and match["unit"] == "%" else None

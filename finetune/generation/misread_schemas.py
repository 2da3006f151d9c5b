"""What llguidance 1.9 would misread of a schema, or never come to an end with: refused before it sees it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep.text import shown

BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
EXACT = 2**53
"""Whole numbers beyond it are rounded in float64, in which llguidance has all; a range below -2**63 ends the
process."""
REMARKS = frozenset(
    {
        "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description",
        "example", "examples", "readOnly", "title", "writeOnly",
    }
)  # fmt: skip
"""Keys that ask nothing of a text."""
MOST_COMBINED, MOST_PATTERNS = 16, 200
"""Patterns that a text may have to match at once, of which each makes the search three times as long, and
those in all, each of which is compared with the others."""


def why_misread(schema: Mapping[str, Any]) -> str | None:
    """The first thing that llguidance would misread; None where there is none."""
    for key, number in _numbers(schema):
        if key not in REMARKS and abs(number) > EXACT:
            advice = "Leave it out, or make it a string."
            return f"{key} {shown(number)}: it rounds numbers beyond {EXACT:,}. {advice}"
    parts = list(_parts(schema))
    return next(filter(None, map(_misread, parts)), None) or _too_many_patterns(parts)


def _misread(part: Mapping[str, Any]) -> str | None:
    if _is_too_narrow(part):
        return (
            f"{shown(part)}: the bounds are less than 1 apart, and it would accept the whole number that is "
            "excluded. Include it, or widen the range."
        )
    least, required = part.get("minProperties"), part.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > len(required) + 1:
        return f"minProperties {least}: it counts a name twice that is written twice. Use required."
    return None


def _too_many_patterns(parts: Sequence[Mapping[str, Any]]) -> str | None:
    several = [found for part in parts if isinstance(found := part.get("patternProperties"), Mapping)]
    patterns = sum("pattern" in part for part in parts) + sum(map(len, several))
    combined = any(map(_combines, parts))
    most = MOST_COMBINED if combined else MOST_PATTERNS
    where = " where schemas are combined (allOf; anyOf or $ref beside other keys)" if combined else ""
    return f"{patterns:,} patterns: expected at most {most}{where}." if patterns > most else None


def _combines(part: Mapping[str, Any]) -> bool:
    """Whether a text has to fulfil several schemas at once."""
    alone = part.keys().isdisjoint(("anyOf", "oneOf", "$ref")) or len(part.keys() - REMARKS) == 1
    return "allOf" in part or not alone


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a schema, itself first."""
    if isinstance(schema, Mapping):
        yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for below in schema:
            yield from _parts(below)


def _numbers(part: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in a schema, and the key that each is under."""
    if isinstance(part, Mapping):
        for name, below in part.items():
            yield from _numbers(below, name)
    elif isinstance(part, list):
        for below in part:
            yield from _numbers(below, key)
    elif isinstance(part, int | float):
        yield key, part


def _is_too_narrow(part: Mapping[str, Any]) -> bool:
    """Whether bounds are less than 1 apart, and one of them is a whole number that is excluded."""
    numbers = {key: part[key] for key in BOUNDS if isinstance(part.get(key), int | float)}
    low = max((numbers[key] for key in BOUNDS[:2] if key in numbers), default=-math.inf)
    high = min((numbers[key] for key in BOUNDS[2:] if key in numbers), default=math.inf)
    excluded = any(key.startswith("exclusive") and numbers[key] % 1 == 0 for key in numbers)
    return excluded and low < high < low + 1

"""What answers are worth, by measures that need the answer and its row alone. Loads no torch."""

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import Any

from finetune.recipe.schema.rewards import RewardSection
from finetune.scoring.labels import Labels
from finetune.scoring.measured import Measured, Prediction
from finetune.scoring.metrics import metric_of

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
"""A number in a text, thousands with commas or without."""

METRICS = {
    "label": "accuracy",
    **{
        name: name
        for name in ("exact_match", "squad_exact_match", "squad_f1", "rouge1", "rouge2", "rougeL", "chrf")
    },
}
"""Kinds of rewards that are a metric of one answer, by its name."""


def by_metric(kind: str, answers: Sequence[Prediction], labels: Labels) -> list[float]:
    """The metric of each answer, divided by its best value."""
    metric = metric_of(METRICS[kind])
    assert metric.by_row is not None  # noqa: S101 - those that are named here have it
    return [value / metric.best for value in metric.by_row(Measured(answers=list(answers), labels=labels))]


def last_number(text: str) -> Decimal | None:
    """The last number in a text; None without any."""
    found = NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:  # more digits than a Decimal has
        return None


def number(answer: str, references: Sequence[str]) -> float:
    """1 where the last numbers of the answer and of a reference are equal."""
    said = last_number(answer)
    return float(said is not None and any(said == last_number(reference) for reference in references))


def regex(section: RewardSection) -> Callable[[str], float]:
    """1 where the pattern is found. Raises ValueError for one that can't be read."""
    pattern = _pattern(section.pattern or "", re.DOTALL)
    return lambda answer: float(pattern.search(answer) is not None)


def length(section: RewardSection, tokens: int) -> float:
    """0 between the bounds, -1 from margin_tokens beyond them on, and between these on the line."""
    below = (section.least_tokens or 0) - tokens
    above = tokens - section.most_tokens if section.most_tokens is not None else 0
    return -min(1.0, max(below, above, 0) / (section.margin_tokens or 1))


KEYWORDS = frozenset({
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems",
    "maxItems",
})  # fmt: skip
"""What is read of JSON Schema."""
ANNOTATIONS = frozenset({"$schema", "title", "description", "default", "examples"})
"""What says nothing of a value."""
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool) and isinstance(value, int | float) and value == value // 1
    ),
}
FORMS: dict[str, type] = {
    "properties": dict, "required": list, "enum": list, "anyOf": list, "pattern": str,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), int),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), Real),
}  # fmt: skip
"""What keywords hold."""
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: not TYPES["number"](value) or value >= bound,
    "maximum": lambda value, bound: not TYPES["number"](value) or value <= bound,
    "exclusiveMinimum": lambda value, bound: not TYPES["number"](value) or value > bound,
    "exclusiveMaximum": lambda value, bound: not TYPES["number"](value) or value < bound,
    "minLength": lambda value, bound: not isinstance(value, str) or len(value) >= bound,
    "maxLength": lambda value, bound: not isinstance(value, str) or len(value) <= bound,
    "minItems": lambda value, bound: not isinstance(value, list) or len(value) >= bound,
    "maxItems": lambda value, bound: not isinstance(value, list) or len(value) <= bound,
    "pattern": lambda value, bound: not isinstance(value, str) or re.search(bound, value) is not None,
    "const": lambda value, bound: _same(value, bound),
    "enum": lambda value, bound: any(_same(value, one) for one in bound),
}


def json_fits(answer: str, schema: dict[str, Any]) -> float:
    """1 where the answer, blanks around it aside, is JSON that fits the schema."""
    try:
        return float(fits(json.loads(answer), schema))
    except (ValueError, RecursionError):
        return 0.0


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value of JSON fits a schema that check_schema let pass."""
    kinds = schema.get("type", list(TYPES))
    if not any(TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if any(name in schema and not bounded(value, schema[name]) for name, bounded in BOUNDS.items()):
        return False
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"]) for item in value)
    if not isinstance(value, dict):
        return True
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", ())):
        return False
    if others is False and any(name not in known for name in value):
        return False
    beyond = others if isinstance(others, dict) else {}
    return all(fits(item, known.get(name, beyond)) for name, item in value.items())


def check_schema(schema: Any, place: str = "json_schema") -> None:
    """Raises ValueError for a schema that isn't read here."""
    if not isinstance(schema, dict):
        raise ValueError(f"{place} is {schema!r}; expected a mapping")
    strange = [name for name in schema if name not in KEYWORDS | ANNOTATIONS]
    if strange:
        raise ValueError(f"{place} has {strange[0]!r}, which isn't read here; it may have {sorted(KEYWORDS)}")
    for name, form in FORMS.items():
        if name in schema and not isinstance(schema[name], form):
            raise ValueError(f"{place}.{name} is {schema[name]!r}; JSON Schema has {form.__name__} there")
    _pattern(schema.get("pattern", ""))
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in TYPES:
            raise ValueError(f"{place}.type is {kind!r}; expected one of {sorted(TYPES)}")
    for name, below in schema.get("properties", {}).items():
        check_schema(below, f"{place}.properties.{name}")
    for number_of, below in enumerate(schema.get("anyOf", ())):
        check_schema(below, f"{place}.anyOf.{number_of}")
    if "items" in schema:
        check_schema(schema["items"], f"{place}.items")
    if not isinstance(schema.get("additionalProperties", True), bool):
        check_schema(schema["additionalProperties"], f"{place}.additionalProperties")


def _pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    try:
        return re.compile(text, flags)
    except re.error as error:
        raise ValueError(f"the pattern {text!r} can't be read: {error}") from None


def _same(one: Any, other: Any) -> bool:
    # true is no 1 in JSON.
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)

"""What answers are worth, by measures that need the answer and its row alone. Loads no torch."""

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
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


COMPARED = (*METRICS, "number")
"""Kinds that compare an answer with its row's."""


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


ANNOTATIONS = frozenset({
    "$schema", "$id", "$defs", "$comment", "title", "description", "default", "examples", "format",
    "deprecated", "readOnly", "writeOnly", "then", "else", "minContains", "maxContains",
})  # fmt: skip
"""Keywords of JSON Schema that another one reads, or nobody."""
BELOW_ONE = frozenset(
    {"items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else"}
)
BELOW_MANY = frozenset({"properties", "patternProperties", "$defs", "dependentSchemas"})
BELOW_LIST = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})


def json_fits(schema: Any) -> Callable[[str], float]:
    """1 where the answer, blanks around it aside, is JSON that fits the schema (JSON Schema 2020-12).

    Raises ValueError for what is no schema, or has a keyword that nobody knows, which would be passed over.
    Nothing is fetched for a $ref.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "".join(f".{step}" for step in error.absolute_path)
        raise ValueError(f"json_schema{place}: {error.message}") from None
    _refuse_unknown(schema, frozenset(Draft202012Validator.VALIDATORS) | ANNOTATIONS)
    validator = Draft202012Validator(schema, registry=Registry())

    def score(answer: str) -> float:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        return float(validator.is_valid(value))

    return score


def _refuse_unknown(schema: Any, known: frozenset[str], place: str = "json_schema") -> None:
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{place}.{name} is no keyword of JSON Schema{hint}")
        if name in BELOW_ONE:
            _refuse_unknown(value, known, f"{place}.{name}")
        elif name in BELOW_MANY or name in BELOW_LIST:
            for step, own in value.items() if name in BELOW_MANY else enumerate(value):
                _refuse_unknown(own, known, f"{place}.{name}.{step}")


def _pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    try:
        return re.compile(text, flags)
    except re.error as error:
        raise ValueError(f"the pattern {text!r} can't be read: {error}") from None

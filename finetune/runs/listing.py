"""Lists of runs: any value of a summary or of a recipe can be a column, a condition, or the order. Loads
nothing heavy."""

import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.recipe.schema import Recipe
from finetune.runs.folder import list_summaries

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt,
    ">": operator.gt, "~": lambda value, part: str(part) in str(value),
}  # fmt: skip
CONDITION = re.compile(r"(?P<key>[\w./@-]+)\s*(?P<operator><=|>=|!=|=|<|>|~)\s*(?P<value>.*)")
ABSENT = object()


@dataclass(frozen=True)
class Condition:
    """KEY OPERATOR VALUE, such as train.learning_rate>=1e-4, status=finished or base~SmolLM2."""

    key: str
    operator: str
    text: str
    """The value as it was typed."""

    def holds(self, summary: dict[str, Any]) -> bool:
        """Whether a run fulfils it; one that lacks the value, or has one of another kind, does not."""
        found = value_of(summary, self.key)
        if found is ABSENT:
            return self.operator == "!="
        # A text is compared with what was typed; anything else with what that means.
        value = (
            self.text.strip("\"'") if self.operator == "~" or isinstance(found, str) else _plain(self.text)
        )
        if isinstance(found, bool) is not isinstance(value, bool):
            return self.operator == "!="
        try:
            return OPERATORS[self.operator](found, value)
        except TypeError:
            return False


def parse_condition(text: str) -> Condition:
    """A condition as it is typed. Raises CheckpointError for anything else."""
    match = CONDITION.fullmatch(text.strip())
    if match is None or not match["value"].strip() or match["value"].lstrip()[0] in "=<>":
        raise CheckpointError(
            f"--where: got {text!r}; expected KEY OPERATOR VALUE with one of {' '.join(OPERATORS)}."
        )
    return Condition(match["key"], match["operator"], match["value"].strip())


def _plain(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False", "None") else text)
    except (ValueError, RecursionError):
        try:
            return float(text)  # 1e-4 is a number, and not JSON
        except ValueError:
            return text


def value_of(summary: dict[str, Any], key: str) -> Any:
    """A value of the summary by its name, or of the recipe by its dotted path; ABSENT where there is none."""
    if key in summary:
        return summary[key]
    value: Any = summary.get("recipe", {})
    for part in key.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return ABSENT
    return value


def chosen(
    summaries: Sequence[dict[str, Any]],
    conditions: Sequence[Condition],
    *,
    order: str | None = None,
    reverse: bool = False,
) -> list[dict[str, Any]]:
    """The summaries of runs that fulfil all conditions, by a value; those that lack it come last.

    Raises CheckpointError for a condition or an order that no run knows.
    """
    for key in [*(condition.key for condition in conditions), *([order] if order else [])]:
        refuse_unknown(summaries, key)
    found = [summary for summary in summaries if all(condition.holds(summary) for condition in conditions)]
    if order is None:
        return found[::-1] if reverse else found
    have = [summary for summary in found if _can_be_ordered(value_of(summary, order))]
    rest = [summary for summary in found if not _can_be_ordered(value_of(summary, order))]

    def sort_key(summary: dict[str, Any]) -> tuple[int, Any]:
        value = value_of(summary, order)
        return (0, value) if isinstance(value, int | float) else (1, str(value))

    return sorted(have, key=sort_key, reverse=reverse) + rest


def _can_be_ordered(value: Any) -> bool:
    return (
        value is not ABSENT and value is not None and value == value
    )  # NaN comes before nothing and after nothing


def refuse_unknown(summaries: Sequence[dict[str, Any]], key: str) -> None:
    """Raises CheckpointError for a name that no run has."""
    if summaries and all(value_of(summary, key) is ABSENT for summary in summaries):
        known = sorted({name for summary in summaries for name in summary if name != "recipe"})
        raise CheckpointError(
            f"no run has a value {key!r}; expected one of {', '.join(known)}, or a recipe's value such as "
            "train.learning_rate."
        )


def measured_speed(recipe: Recipe) -> float | None:
    """Tokens/s of the newest finished run of the same base and method in the recipe's output folder."""
    same = {"model": recipe.model.model_dump(mode="json"), "method": recipe.adapter.method}
    for summary in reversed(list_summaries(Path(recipe.output.folder))):
        known = summary.get("recipe") or {}
        if (
            summary["status"] == "finished"
            and {"model": known.get("model"), "method": summary.get("method")} == same
        ):
            return float(summary["tokens_per_second"]) or None
    return None

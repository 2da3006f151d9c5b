"""What the keys of a message mean: roles in every tool's spelling, whether a turn is learned, and keys to
ignore."""

from collections.abc import Collection
from typing import Any

from data_prep.formats.columns import a_json_type
from data_prep.formats.text_values import as_number, as_truth
from data_prep.sources.rows import listed
from data_prep.text import shown

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant", "tool": "tool",
    "observation": "tool", "function": "tool", "ipython": "tool", "function_response": "tool",
    "tool_response": "tool", "tool_result": "tool", "function_call": "function_call",
    "tool_call": "function_call",
}  # fmt: skip
"""The names of roles and what they are here; a turn of function_call is the assistant's, with its calls as
JSON."""

WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""Keys that hold how much a turn counts: 0 is not learned, 1 is."""

LEARNED_WHERE_TRUE = (
    "loss", "loss_mask", "step_loss_mask", "train", "training", "trainable", "train_on_turn", "train_on",
    "learn", "learned", "learnable", "supervise", "supervised",
)  # fmt: skip
LEARNED_WHERE_FALSE = ("masked", "mask_loss", "loss_masked", "no_loss", "ignore_loss")
"""Keys by which other tools say whether a turn is learned; `mask` alone means opposite things in different
tools."""

WITHOUT_MEANING = frozenset({
    "id", "message_id", "parent_id", "name", "user_id", "author", "index", "turn", "turn_id",
    "turn_identifier", "type", "object", "status", "time", "date", "timestamp", "created", "created_at",
    "updated_at", "source", "lang", "language", "model", "tokens", "token_count", "num_tokens", "n_tokens",
    "length", "meta", "metadata", "annotations", "country", "header", "hashed_ip", "state", "toxic",
    "toxicity", "redacted",
})  # fmt: skip
"""Metadata that no model reads; counted, and left out."""

MESSAGE_COLUMNS = frozenset({"messages", "conversations", "prompt", "completion", "chosen", "rejected"})
"""Columns that hold messages, in some format."""

LARGEST_WEIGHT = 1000.0


def says_nothing(value: Any) -> bool:
    """Whether a value is null or empty."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def role_of(name: str, field: str) -> str:
    """What a role's name means. Raises ValueError."""
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise ValueError(
            f"{field} is {shown(name)}; expected one of {', '.join(ROLES)}. data.on_bad_row: skip leaves "
            "such rows out"
        )
    return role


def weight_of(item: dict[str, Any], field: str) -> float | None:
    """The weight that a message's keys give it; None if they give none. Raises ValueError if they
    disagree."""
    if _SAYS_WEIGHT.isdisjoint(item):
        return None
    if not says_nothing(item.get("mask")):
        raise ValueError(
            f"{field}.mask is ambiguous: some tools learn a masked turn and others don't; write weight: 0 or "
            "1"
        )
    said: dict[str, float] = {}
    for key in item.keys() & _SAYS_WEIGHT - {"mask"}:
        if (weight := _weight(item[key], key, f"{field}.{key}")) is not None:
            said[key] = weight
    if len(set(said.values())) > 1:
        keys = " and ".join(f"{key} ({item[key]!r})" for key in sorted(said))
        raise ValueError(
            f"{field}: its keys {keys} disagree about whether, or how much, the turn is learned; keep one"
        )
    return next(iter(said.values()), None)


_SAYS_WEIGHT = frozenset({*WEIGHTS, *LEARNED_WHERE_TRUE, *LEARNED_WHERE_FALSE, "mask"})


def _weight(value: Any, key: str, field: str) -> float | None:
    if key not in WEIGHTS:
        truth = as_truth(value, field)
        return None if truth is None else float(truth != (key in LEARNED_WHERE_FALSE))
    if says_nothing(value) or isinstance(value, bool):
        return None if says_nothing(value) else float(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    if not isinstance(value, int | float | str):
        raise ValueError(f"{field} is {a_json_type(value)}; a number was expected")
    weight = as_number(value, field)
    if not 0 <= weight <= LARGEST_WEIGHT:
        raise ValueError(f"{field} is {shown(value)}; a number from 0 to {LARGEST_WEIGHT:g} was expected")
    return float(weight)


def refuse_unknown(item: dict[str, Any], known: Collection[str], field: str) -> None:
    """Raise ValueError for a key that holds something, is not read, and may have a meaning."""
    for key in item:
        if (
            key not in known
            and key not in _SAYS_WEIGHT
            and key not in WITHOUT_MEANING
            and not says_nothing(item[key])
        ):
            raise ValueError(
                f"{field}.{shown(key)[1:-1]} is not supported: a message has {listed(known)}; to ignore it, "
                "add it to the source's ignore_columns"
            )


def unread_keys(item: Any) -> list[str]:
    """The keys of a message that hold something and are left out."""
    if not isinstance(item, dict) or WITHOUT_MEANING.isdisjoint(item):
        return []
    return [key for key in item if key in WITHOUT_MEANING and not says_nothing(item[key])]

"""Columns that a format doesn't read: those that may change what is learned are refused, the others are only
counted."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from data_prep.files import says_held_out
from data_prep.formats.base import Format
from data_prep.formats.message_keys import (
    LEARNED_WHERE_FALSE,
    LEARNED_WHERE_TRUE,
    MESSAGE_COLUMNS,
    WEIGHTS,
    says_nothing,
    unread_keys,
)
from data_prep.formats.text_values import as_truth, as_turns_or_text
from data_prep.messages import REASONING_KEYS
from data_prep.sources.rows import Unreadable
from data_prep.text import shown

OTHER_TOOLS = {
    "system_prompt": "system", "system_message": "system", "system_instruction": "system",
    "sys_prompt": "system", "functions": "tools", "function": "tools", "available_tools": "tools",
    "tool_list": "tools", "context": "input", "passage": "context",
}  # fmt: skip
"""What other tools call a column, and what the formats here call it."""

ASKED = frozenset({"input", "instruction", "context", "passage", "options", "choices"})
"""Columns with a part of the question, which is lost where a format that asks (Format.asks) doesn't read
them."""

MEANINGFUL = frozenset({"system", "tools", "history", "references", *OTHER_TOOLS}) - ASKED
"""Columns that the model is meant to read, in every format but plain texts."""

THOUGHTS = frozenset({*REASONING_KEYS, "chain_of_thought", "cot", "thoughts"})
"""Columns with the reasoning before the answer; messages have their own keys for it."""

MEDIA = frozenset({"image", "images", "audio", "audios", "video", "videos"})
"""Columns with media that the texts of a dialogue may refer to."""

ROW_WEIGHTS = frozenset({*WEIGHTS, "sample_weight"})
ROW_MASKS = frozenset(
    {*LEARNED_WHERE_TRUE, *LEARNED_WHERE_FALSE, "mask", "completion_mask", "assistant_masks"}
)
"""Columns that say how much of a dialogue is learned."""

GOOD_OR_BAD = frozenset({"label", "kto_tag"})
"""Columns that say whether a dialogue's answer is good, as for KTO."""


def unread_columns(values: Mapping[str, Any], form: Format, names: Mapping[str, str]) -> list[str]:
    """The columns of a row that its format doesn't read, and the keys of its messages: "messages.id".

    `names` maps the format's names of columns to the row's, where they differ.
    """
    read = {names.get(name, name) for name in form.columns.names}
    unread = [name for name in values if name not in read]
    for name in MESSAGE_COLUMNS.intersection(form.columns.names):
        messages = as_turns_or_text(values.get(names.get(name, name)), name)
        keys = (
            key
            for message in (messages if isinstance(messages, list) else ())
            for key in unread_keys(message)
        )
        unread += [f"{names.get(name, name)}.{key}" for key in dict.fromkeys(keys)]
    return unread


def check_columns(values: Mapping[str, Any], form: Format) -> None:
    """Raise ValueError for an unread column that may change what is learned, or whose name is close to an
    optional one's."""
    columns = form.columns
    for name in [name for name in values if name not in columns.names]:
        value = values[name]
        if says_nothing(value) or isinstance(
            value, Unreadable
        ):  # an unreadable value carries no meaning either
            continue
        absent = [optional for optional in columns.optional if optional not in values]
        if isinstance(value, str) and (meant := _meant(name.lower(), absent)):
            raise ValueError(
                f"the column {shown(name)} is not read; did you mean {meant!r}? Write columns: {{{meant}: "
                f"{name}}}, or add it to ignore_columns to ignore it"
            )
        if problem := _problem(name.lower(), value, form):
            raise ValueError(
                f"the column {shown(name)} {problem}, and this format doesn't read it; to ignore it, add it "
                f"to the source's ignore_columns{_hint(name.lower(), columns.names)}"
            )


def _meant(name: str, absent: list[str]) -> str | None:
    if OTHER_TOOLS.get(name) in absent:
        return OTHER_TOOLS[name]
    close = get_close_matches(name, absent, n=1, cutoff=0.75)
    return next(iter(close or [optional for optional in absent if name.startswith(f"{optional}_")]), None)


def _problem(name: str, value: Any, form: Format) -> str | None:
    """Why a column that isn't read can't be ignored; None if it can."""
    if name == "split" and isinstance(value, str) and says_held_out(value):
        return f"says that the row is held out ({shown(value)})"
    if name in MEANINGFUL and form.makes != "texts":
        return "may change what is learned"
    if name in ASKED and form.asks:
        return "may be part of the question"
    if name in THOUGHTS and (form.dialogue or form.asks):
        return "may be the reasoning before the answer"
    if not form.dialogue:
        return None
    if name in MEDIA:
        return "may be media that the texts refer to"
    if name in ROW_WEIGHTS and _truth(value) is not True:
        return f"says how much the row counts ({shown(value)})"
    if name in ROW_MASKS and _truth(value) is not True:
        return f"says which part of the row is learned ({shown(value)})"
    # A label of 0 may be any class.
    if (
        name in GOOD_OR_BAD
        and _truth(value) is False
        and (name != "label" or str(value).strip().lower() == "false")
    ):
        return "says that the answer is bad, as in rows for KTO"
    return None


def _hint(name: str, names: Collection[str]) -> str:
    """What else can be done about a column."""
    if name in GOOD_OR_BAD:
        return "; data.on_bad_row: skip leaves the bad rows out"
    if name in ASKED | THOUGHTS:
        return "; format template can write it"
    meant = OTHER_TOOLS.get(name)
    return f"; columns: {{{meant}: {name}}} reads it" if meant in names else ""


def _truth(value: Any) -> bool | None:
    """The truth value in a column; None if there is none."""
    try:
        return as_truth(value, "")
    except ValueError:
        return None

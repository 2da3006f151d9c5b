"""Keys of an accelerate file: how their values are read, and what becomes of each. Torch-free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NOTHING = ("", "no", "none", "null", "false", "{}", "[]")


def is_nothing(value: Any) -> bool:
    """Whether a value asks for nothing: absent, false, no, none, or empty."""
    return value is None or str(value).strip().lower() in NOTHING


def as_flag(value: Any) -> bool | None:
    """What a switch says, as YAML or the environment writes it; None for what is no switch."""
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
        str(value).strip().lower()
    )


def as_count(value: Any) -> int | None:
    """A whole number from 0, as YAML or the environment writes it; None for anything else."""
    text = "" if isinstance(value, bool) else str(value).strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def as_norm(value: Any) -> float | None:
    """A number from 0; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number >= 0 else None


def text_of(values: Mapping[str, Any], name: str, default: str) -> str:
    """A key's word, in lower case."""
    return default if is_nothing(values.get(name)) else str(values[name]).strip().lower()


def count_of(values: Mapping[str, Any], name: str, default: int) -> int:
    """A key's whole number."""
    found = as_count(values.get(name))
    return default if found is None else found


def flag_of(values: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """Whether a key says true."""
    found = as_flag(values.get(name))
    return default if found is None else found


def one_of(*names: str) -> Callable[[Any], bool]:
    """Takes these words in any case."""
    return lambda value: str(value).strip().lower() in {name.lower() for name in names}


def at_least(low: int) -> Callable[[Any], bool]:
    """Takes whole numbers from this one."""
    return lambda value: (count := as_count(value)) is not None and count >= low


def is_flag(value: Any) -> bool:
    """Takes true and false."""
    return as_flag(value) is not None


@dataclass(frozen=True)
class Key:
    """What becomes of one key."""

    fate: Literal["honoured", "refused", "harmless"]
    why: str
    """honoured: what is expected; refused: why it can't be; harmless: why it makes no difference."""
    takes: Callable[[Any], bool] = is_nothing
    """Which values are no problem."""


def honoured(takes: Callable[[Any], bool], expected: str) -> Key:
    """A key that is carried out, where its value is one that can be."""
    return Key("honoured", expected, takes)


def refused(why: str) -> Key:
    """A key that asks for something else than this toolkit does, unless it asks for nothing."""
    return Key("refused", why if "take " in why or "set " in why or "write " in why else f"{why}; remove it")


def harmless(why: str) -> Key:
    """A key that changes nothing, whatever it says."""
    return Key("harmless", why, lambda value: True)


@dataclass(frozen=True)
class FileSection:
    """A section of an accelerate file."""

    name: str
    prefix: str
    """What accelerate adds to a key that lacks it."""
    keys: Mapping[str, Key] = field(default_factory=dict)
    """By their names within the section."""

"""What a file of another tool says: every key with its value and its place, and which have been looked at."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.recipe.paths import HUB_ID


class ConvertError(FinetuneError):
    """A file of another tool that can't be read or understood; nothing is written."""


@dataclass(frozen=True)
class GivenKey:
    """One key of the file. `line` is 0 where the tool's default stands in for what is not written."""

    key: str
    value: Any
    shown: str = ""
    line: int = 0

    @property
    def written(self) -> bool:
        """Whether the file says it."""
        return self.line > 0

    @property
    def place(self) -> str:
        """FILE:LINE, or the file."""
        return f"{self.shown}:{self.line}" if self.written else self.shown

    @property
    def off(self) -> bool:
        """Whether the value says that there is none of it."""
        return is_off(self.value)

    def refused(self, message: str) -> ConvertError:
        """The error that a message about this key becomes."""
        default = "" if self.written else " (its default)"
        return ConvertError(f"{self.place}: {self.key}{default}: {message}")


def is_off(value: Any) -> bool:
    """Whether a value says "none", as the tools write it."""
    return value in (None, False, 0, "", [], {}) or (
        isinstance(value, str)
        and value.strip().lower() in ("none", "null", "false", "no", "off", "0", "disabled")
    )


@dataclass
class Given:
    """The keys of a file, dotted, in its order. Taking one marks it as looked at."""

    file: Path
    shown: str
    entries: dict[str, GivenKey]
    taken: set[str] = field(default_factory=set)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that a shell script sets before the command."""

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def under(self, prefix: str) -> bool:
        """Whether there is a key, or any key below it."""
        return prefix in self.entries or any(key.startswith(f"{prefix}.") for key in self.entries)

    def get(self, key: str) -> GivenKey | None:
        """A key, without taking it."""
        return self.entries.get(key)

    def value(self, key: str, otherwise: Any = None) -> Any:
        """A key's value, without taking it."""
        return self.entries[key].value if key in self.entries else otherwise

    def take(self, key: str) -> GivenKey | None:
        """A key, which is now looked at; None where it isn't there, or was taken."""
        if key not in self.entries or key in self.taken:
            return None
        self.taken.add(key)
        return self.entries[key]

    def processes(self) -> int:
        """How many processes a script starts; 1 where it doesn't say."""
        said = (self.environment.get(name, "") for name in ("NPROC_PER_NODE", "NNODES"))
        return math.prod(int(text) for text in said if text.isdecimal() and int(text))

    def on(self, names: str) -> bool:
        """Whether one of these keys, in whichever section, is written and not off."""
        wanted = names.split()
        return any(not entry.off and key.rpartition(".")[2] in wanted for key, entry in self.entries.items())

    def items(self, prefix: str) -> list[str]:
        """The prefixes of a list's sections (datasets.0, ...), or the prefix itself for one section."""
        below = [key[len(prefix) + 1 :].split(".")[0] for key in self.entries if key.startswith(f"{prefix}.")]
        numbers = [part for part in dict.fromkeys(below) if part.isdecimal()]
        return [f"{prefix}.{number}" for number in numbers] or ([prefix] if below else [])

    def left(self) -> Iterator[GivenKey]:
        """Keys that nobody took, in the file's order."""
        yield from [entry for key, entry in self.entries.items() if key not in self.taken]

    def take_below(self, *prefixes: str) -> list[GivenKey]:
        """Every key below a section that nobody took, now looked at."""
        found = [entry for entry in self.left() if entry.key.startswith(tuple(f"{p}." for p in prefixes))]
        self.taken.update(entry.key for entry in found)
        return found

    def add_defaults(self, defaults: Mapping[str, Any]) -> None:
        """The tool's own defaults, for keys that are not written."""
        for key, value in defaults.items():
            self.entries.setdefault(key, GivenKey(key, value, self.shown))

    def refused(self, message: str) -> ConvertError:
        """The error that a message about the file as a whole becomes."""
        return ConvertError(f"{self.shown}: {message}")


UNFIT = re.compile(
    r"(?i)(^|[-_/.])(vl\d*|vlm|vision|omni|audio|llava|smolvlm|internvl\d*|paligemma\d*|cogvlm\d*|pixtral|"
    r"minicpm-[ov]|multimodal|gemma-3-(4|12|27)b|gemma-3n|mixtral|\w*moe\d*|a\d+(\.\d+)?[bm]|\d+x\d+b|16e|128e|"
    r"gpt-oss|deepseek-v[23]|dbrx|grok|jamba|kimi-k2)([-_/.]|$)"
)
"""What names of bases have that see, hear, or are mixtures of experts."""


def local(text: str, given: Given) -> str:
    """A path of the file, absolute where it is on this machine, or else as it is written.

    Tools read relative paths from where they are started; a file beside the configuration is found as well.
    """
    for folder in (Path.cwd(), given.file.parent):
        path = folder / Path(text).expanduser()
        if text and path.exists():
            return str(path.resolve())
    return text


def base_name(entry: GivenKey, given: Given) -> str:
    """A hub id as it is, or a folder. Raises ConvertError for a base of another kind, by its name."""
    if not isinstance(entry.value, str) or not entry.value.strip():
        raise entry.refused(f"got {entry.value!r}, expected the name of a base or a folder")
    name = entry.value.strip().rstrip("/")
    if UNFIT.search(name):
        raise entry.refused(
            f"{name} is a multimodal base or a mixture of experts by its name; text models of the LLaMA, "
            "Mistral and Qwen families are trained here"
        )
    return local(name, given)


def is_hub_id(name: str) -> bool:
    """Whether a name is one of the hub (owner/name) and no path of this machine."""
    return bool(HUB_ID.fullmatch(name)) and not os.path.exists(name)


def relative(path: str, folder: Path) -> str:
    """An absolute path as a recipe in the folder has it; relative where it is near."""
    if not os.path.isabs(path):
        return path
    near = os.path.relpath(path, folder)
    return near if near.count("..") <= 2 else path


def truth(entry: GivenKey) -> bool:
    """A switch. Raises ConvertError for what is neither on nor off."""
    if isinstance(entry.value, bool):
        return entry.value
    if entry.off:
        return False
    if str(entry.value).lower() in ("true", "yes", "on", "1", "auto"):
        return True
    raise entry.refused(f"got {entry.value!r}, expected true or false")


def number(entry: GivenKey) -> float:
    """A finite number, also in quotes. Raises ConvertError for anything else."""
    value = entry.value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = entry.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise entry.refused(f"got {shown(entry.value)}, expected a number")
    return value


def whole(entry: GivenKey) -> int:
    """A whole number."""
    value = number(entry)
    if value != int(value):
        raise entry.refused(f"got {shown(entry.value)}, expected a whole number")
    return int(value)


def at_least_one(entry: GivenKey) -> int:
    """A whole number from 1."""
    value = whole(entry)
    if value < 1:
        raise entry.refused(f"got {value}, expected at least 1")
    return value


def name_list(entry: GivenKey) -> list[str]:
    """A list of names, also written as one text with commas or blanks."""
    value = entry.value
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise entry.refused(f"got {shown(value)}, expected names")


def shown(value: Any) -> str:
    """A value in a message."""
    from finetune.recipe.reading.explain import show

    return show(value)

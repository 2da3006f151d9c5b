"""The recipe that is being written, and what became of each key of the file it is made from."""

from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.conversion.given import Given, GivenKey

Fate = Literal["carried", "otherwise", "dropped"]


@dataclass(frozen=True)
class Line:
    """What became of one key: its place in the file, ours, how or why, and whether the result changes."""

    fate: Fate
    key: str
    place: str
    ours: str
    how: str
    changes: bool

    def __str__(self) -> str:
        """One line, for people."""
        ours = f" -> {self.ours}" if self.ours else ""
        how = f": {self.how}" if self.how else ""
        result = "" if self.fate == "carried" else "; the result changes" if self.changes else "; same result"
        return f"{self.key}{ours}{how}{result}"


@dataclass
class Placed:
    """A value of the recipe, and the comment that says where it comes from."""

    value: Any
    comment: str
    asked: bool
    """False for a default of the tool, which is left out where it is ours too."""


@dataclass
class Batch:
    """What a step's batch is made of, in the tool's own terms."""

    micro: int = 1
    accumulation: int = 1
    processes: int = 1
    whole: int | None = None
    keys: list[str] = field(default_factory=list)


def _rank(entry: GivenKey) -> tuple[bool, bool, bool]:
    return entry.written, not entry.off, entry.key.endswith("steps")


class Draft:
    """Collects values by their dotted keys, and a line for every key of the file."""

    def __init__(self, given: Given, title: str, processes: int):
        self.given, self.title = given, title
        self.values: dict[str, Placed] = {}
        self.lines: list[Line] = []
        self.batch = Batch(processes=processes)
        self.notes: dict[str, GivenKey] = {}
        """Entries whose meaning depends on others, by what is collected: finish.py puts them together."""

    def comment(self, entry: GivenKey) -> str:
        """Where a value comes from, for the recipe."""
        return entry.key if entry.written else f"{self.title}'s default of {entry.key}"

    def put(self, path: str, value: Any, entry: GivenKey | str) -> None:
        """A value of the recipe; the file's own values go before the tool's defaults."""
        asked = isinstance(entry, str) or entry.written
        if path in self.values and self.values[path].asked and not asked:
            return
        self.values[path] = Placed(value, entry if isinstance(entry, str) else self.comment(entry), asked)

    def carry(self, entry: GivenKey, path: str, value: Any) -> None:
        """The key is one of ours, with the same result."""
        self.put(path, value, entry)
        self.carried(entry, path)

    def carried(self, entry: GivenKey | None, path: str = "", how: str = "") -> None:
        """The key, if the file has it, is carried; its value is written elsewhere, or there is nothing to
        write."""
        if entry is not None:
            self._line("carried", entry, path, how, changes=False)

    def otherwise(self, entry: GivenKey, how: str, path: str = "", *, changes: bool = False) -> None:
        """The key is carried in another form, or the toolkit does it by itself."""
        self._line("otherwise", entry, path, how, changes=changes)

    def drop(self, entry: GivenKey, why: str, *, changes: bool = True) -> None:
        """The key is not carried."""
        self._line("dropped", entry, "", why, changes=changes)

    def _line(self, fate: Fate, entry: GivenKey, path: str, how: str, *, changes: bool) -> None:
        if not entry.written and not changes:
            return  # a default that makes no difference isn't worth a line
        key = entry.key if entry.written else f"{entry.key} (default {entry.value})"
        self.lines.append(Line(fate, key, entry.place, path, how, changes))

    def note(self, name: str, entry: GivenKey) -> None:
        """An entry for finish.py. Of two keys of one thing, what is written goes before a default, what is on
        before what is off, steps before a fraction, as in transformers, and the later before the other."""
        before = self.notes.get(name)
        if before is None or before.key == entry.key:
            self.notes[name] = entry
            return
        first, other = (before, entry) if _rank(before) > _rank(entry) else (entry, before)
        self.notes[name] = first
        if other.written:
            self.otherwise(other, f"{first.key} goes before it")

    def value(self, path: str, otherwise: Any = None) -> Any:
        """A value of the recipe so far."""
        return self.values[path].value if path in self.values else otherwise

    def remove(self, path: str) -> None:
        """A value of the recipe, and what is below it, taken back."""
        for key in [key for key in self.values if key == path or key.startswith(f"{path}.")]:
            del self.values[key]

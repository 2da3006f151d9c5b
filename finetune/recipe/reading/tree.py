"""A recipe before it is validated: plain values, each with the place where it was written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.text import cut
from finetune.errors import Problem

Scalar = str | int | float | bool | None
Location = tuple[str | int, ...]

# Replaced whole by a later layer, never merged key by key: their keys exclude one another.
ATOMIC: frozenset[Location] = frozenset({("model", "base"), ("data", "evaluation")})

SOURCE_LISTS: tuple[Location, ...] = (
    ("data", "train"),
    ("data", "evaluation", "sources"),
    ("sweep", "repeats", "sources"),
)
"""Where sources of rows are listed."""


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe file, or the command line (`path` is None). Relative paths written in it start at `folder`."""

    shown: str
    folder: Path
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A position in a source; lines and columns count from 1."""

    source: RecipeFile
    line: int
    column: int

    def __str__(self) -> str:
        """FILE:LINE:COLUMN, or "command line"."""
        return f"{self.source.shown}:{self.line}:{self.column}" if self.source.path else self.source.shown


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its places: where it starts and, in a mapping, where its key starts.

    `broken`: a problem was already reported here, so that what validation says about it is no news.
    `is_default`: nobody wrote it; it is in a run's lock because it was the default.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    place: SourceLocation
    key_place: SourceLocation | None = None
    broken: bool = False
    is_default: bool = False

    def plain(self) -> Any:
        """The value without places, as JSON would have it."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> "Node | None":
        """The value under a key or index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def find(self, location: Location) -> "Node | None":
        """The value at a location below this one, if there is one."""
        node: Node | None = self
        for key in location:
            node = node.child(key) if node else None
        return node

    def nearest(self, location: Location) -> "Node":
        """The value at a location, or at the deepest part of it that exists."""
        node = self
        for key in location:
            below = node.child(key)
            if below is None:
                return node
            node = below
        return node

    def locate(self, path: str) -> Location:
        """The location of a dotted path below this value: at each mapping the longest key that is one of
        its own, since a key may hold dots."""
        parts, location, node = path.split("."), list[str | int](), self
        while parts:
            ends = range(len(parts), 0, -1)
            own = (
                end for end in ends if isinstance(node.value, dict) and ".".join(parts[:end]) in node.value
            )
            end = next(own, 1)
            key = ".".join(parts[:end])
            location.append(int(key) if key.isdecimal() else key)
            node, parts = node.nearest((location[-1],)), parts[end:]
        return tuple(location)

    def broken_at(self, location: Location) -> bool:
        """Whether a problem was already reported at a location or above it."""
        return any(node.broken for end in range(len(location) + 1) if (node := self.find(location[:end])))

    def walk(self, location: Location = ()) -> Iterator[tuple[Location, "Node"]]:
        """Every value with its location, parents first."""
        yield location, self
        if isinstance(self.value, dict):
            for key, node in self.value.items():
                yield from node.walk((*location, key))
        elif isinstance(self.value, list):
            for index, node in enumerate(self.value):
                yield from node.walk((*location, index))


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A problem that still knows its place, so that findings can be sorted."""

    place: SourceLocation
    location: Location
    message: str


def finding_at(node: Node, location: Location, message: str, *, at_key: bool | None = None) -> Diagnostic:
    """A finding about a node: at its key when `at_key` (by default, when its value is no scalar), else at its
    value."""
    if at_key is None:
        at_key = node.value is None or isinstance(node.value, dict | list)
    return Diagnostic(node.key_place if at_key and node.key_place else node.place, location, message)


def as_problems(findings: Sequence[Diagnostic], sources: Sequence[RecipeFile]) -> list[Problem]:
    """Findings as problems, sorted by source (in the given order; the command line last), line and column;
    none twice."""
    order = {source: index for index, source in enumerate(sources)}

    def position(finding: Diagnostic) -> tuple[int, int, int, str]:
        place = finding.place
        return order.get(place.source, len(order)), place.line, place.column, dotted(finding.location)

    problems = [
        Problem(str(f.place), _cut(dotted(f.location)), _cut(f.message))
        for f in sorted(findings, key=position)
    ]
    return list(dict.fromkeys(problems))


def _cut(text: str, most: int = 2000) -> str:
    """A text that isn't longer than a person reads: a key, a path or a name may have a million characters."""
    return cut(text, most)


def dotted(location: Location) -> str:
    """("data", "train", 0) as data.train.0."""
    return ".".join(str(key) for key in location)


def merge(lower: Node, upper: Node, location: Location = ()) -> Node:
    """`upper` laid over `lower`: mappings merge key by key; lists, scalars and the atomic sections
    replace."""
    if not isinstance(lower.value, dict) or not isinstance(upper.value, dict) or location in ATOMIC:
        return upper
    merged = dict(lower.value)
    for key, node in upper.value.items():
        merged[key] = merge(merged[key], node, (*location, key)) if key in merged else node
    return replace(upper, value=merged, broken=lower.broken or upper.broken)

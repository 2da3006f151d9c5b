"""Read YAML 1.2 into a tree of plain values with positions; refuse what a recipe has no use for, at its line
and column."""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from data_prep.disk import read_regular
from data_prep.text import cut
from finetune.recipe.reading.tree import (
    Diagnostic,
    Location,
    Node,
    RecipeFile,
    Scalar,
    SourceLocation,
    finding_at,
)

MAX_BYTES = 1_000_000
MAX_NODES = 10_000  # after aliases are expanded: a recipe has about a hundred
MAX_DEPTH = 50
LOCK_BYTES = 16 * MAX_BYTES
LOCK_NODES = 20 * MAX_NODES  # a recipe with all its defaults, and where each of them comes from

# The core schema of YAML 1.2, section 10.3.2.
NULLS = frozenset({"", "~", "null", "Null", "NULL"})
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
OTHER_BASES = re.compile(r"0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# Not in the core schema, but many a reader makes it a date: it has to be quoted.
DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?")


class _StopReadingError(Exception):
    """The rest of the text can't be read; the finding says why."""

    def __init__(self, finding: Diagnostic):
        self.finding = finding


def plain_scalar(text: str) -> Scalar:
    """What an unquoted scalar means in YAML 1.2. Raises ValueError for what isn't a value of JSON."""
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if OTHER_BASES.fullmatch(text):
        return int(text, 0)
    if NOT_FINITE.fullmatch(text):
        raise ValueError(f"got {text}, expected a finite number")
    if FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"got {shorten(text)}, which is too large for a number")
        return number
    if DATE.fullmatch(text):
        raise ValueError(
            f"got the date {text}; a recipe holds text, numbers, true, false and null: put it in quotes"
        )
    return text


def quoted_scalar(text: str) -> str:
    """The text of a quoted scalar. Raises ValueError where its escapes give characters that no file can
    hold."""
    if "\0" in text:
        raise ValueError("a text with the character U+0000")
    try:  # JSON, a part of YAML, writes a character beyond U+FFFF as two escapes
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("a text with half of a surrogate pair") from None


def shorten(text: str, longest: int = 60) -> str:
    """Text for a message: on one line, printable, not long."""
    text = cut(text, 2 * longest)
    return cut(
        "".join(character if character.isprintable() else repr(character)[1:-1] for character in text),
        longest,
    )


def read_plain_lock(path: Path) -> Any:
    """The plain values of a run's lock, within the wider bounds of one.

    Raises OSError where it can't be read, ValueError with the first that is wrong in it, and the line.
    """
    tree, findings = read_lock_yaml(read_regular(path, LOCK_BYTES), RecipeFile(str(path), path.parent, path))
    if findings:
        first = findings[0]
        raise ValueError(f"line {first.place.line}: {first.message}")
    return tree.plain() if tree is not None else None


def read_lock_yaml(content: bytes, source: RecipeFile) -> tuple[Node | None, list[Diagnostic]]:
    """The tree of a run's lock, as read_yaml has that of a recipe."""
    if len(content) > LOCK_BYTES:
        return None, [
            Diagnostic(
                SourceLocation(source, 1, 1),
                (),
                f"a lock has at most {LOCK_BYTES:,} bytes; this file has more",
            )
        ]
    return _read(content, source, _LockReader)


def read_yaml(
    content: bytes, source: RecipeFile, *, anchors: bool = True
) -> tuple[Node | None, list[Diagnostic]]:
    """The tree of a recipe's YAML document and what is wrong with it; no tree when it can't be read to its
    end."""
    if len(content) > MAX_BYTES:
        message = f"a recipe has at most {MAX_BYTES:,} bytes; this file has more"
        return None, [Diagnostic(SourceLocation(source, 1, 1), (), message)]
    return _read(content, source, _Reader, anchors=anchors)


def _read(
    content: bytes, source: RecipeFile, kind: "type[_Reader]", *, anchors: bool = True
) -> tuple[Node | None, list[Diagnostic]]:
    start = SourceLocation(source, 1, 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        return None, [
            Diagnostic(_end_of(before, source), (), f"byte 0x{content[error.start]:02x} is not UTF-8")
        ]
    tabs = _indenting_tabs(text, source)
    if tabs:
        return None, tabs
    reader = kind(text, source, anchors=anchors)
    try:
        tree = reader.document()
    except _StopReadingError as stop:
        return None, [*reader.findings, stop.finding]
    except ReaderError as error:
        place = _end_of(text[: error.position], source)
        return None, [
            *reader.findings,
            Diagnostic(place, (), f"character U+{error.character:04X} is not allowed in YAML"),
        ]
    except MarkedYAMLError as error:
        place = _place_of(error, source)
        return None, [
            *reader.findings,
            Diagnostic(place, (), _syntax_message(error) + _about_variables(text, place)),
        ]
    except (
        YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # an escape beyond Unicode: "\U00110000", "\UFFFFFFFF"
        return None, [*reader.findings, Diagnostic(start, (), f"not YAML: {shorten(str(error), 200)}")]
    return tree, reader.findings


def read_value(text: str, source: RecipeFile) -> tuple[Node | None, list[Diagnostic]]:
    """One YAML value of the command line: # begins no comment in it, and there is nothing that an anchor
    could serve."""
    stand_in = next(character for character in map(chr, range(0xE000, 0xF900)) if character not in text)
    tree, findings = read_yaml(
        text.replace("#", stand_in).encode("utf-8", "surrogateescape"), source, anchors=False
    )
    findings = [replace(finding, message=finding.message.replace(stand_in, "#")) for finding in findings]
    return (tree and _with_hashes(tree, stand_in)), findings


def _with_hashes(node: Node, stand_in: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        return replace(
            node, value={key.replace(stand_in, "#"): _with_hashes(n, stand_in) for key, n in value.items()}
        )
    if isinstance(value, list):
        return replace(node, value=[_with_hashes(below, stand_in) for below in value])
    return replace(node, value=value.replace(stand_in, "#")) if isinstance(value, str) else node


def _about_variables(text: str, place: SourceLocation) -> str:
    """What to do where ${NAME} between braces or brackets is no YAML."""
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    return (
        '; between braces or brackets a text with ${NAME} needs quotes: "${NAME}/rows.jsonl"'
        if "${" in line
        else ""
    )


def _end_of(text: str, source: RecipeFile) -> SourceLocation:
    """The place right after a text that starts at the beginning of the source."""
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    return SourceLocation(source, len(lines), len(lines[-1].removeprefix("\ufeff")) + 1)


def _indenting_tabs(text: str, source: RecipeFile) -> list[Diagnostic]:
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    return [
        Diagnostic(
            SourceLocation(source, number, line.index("\t") + 1),
            (),
            "a tab in the indentation; YAML is indented with spaces",
        )
        for number, line in enumerate(lines, start=1)
        if "\t" in line[: len(line) - len(line.lstrip(" \t"))] and line.strip()
    ]


def _place_of(error: MarkedYAMLError, source: RecipeFile) -> SourceLocation:
    mark = error.problem_mark or error.context_mark
    return SourceLocation(source, mark.line + 1, mark.column + 1) if mark else SourceLocation(source, 1, 1)


def _syntax_message(error: MarkedYAMLError) -> str:
    problem = error.problem or "can't be read"
    if r"'\t'" in problem:
        return "a tab; YAML is written with spaces"
    if "mapping values are not allowed" in problem:
        return (
            "not YAML: a second `key:` on this line, or indentation that doesn't fit; text with a colon "
            "needs quotes"
        )
    if "could not find expected ':'" in problem:
        return "not YAML: expected `key: value`, and a space after the colon"
    context = f" {error.context}" if error.context else ""
    return f"not YAML: {shorten(problem + context, 200)}"


class _Reader:
    """Builds the tree from the parser's events, so that nothing is constructed that a recipe can't hold."""

    most_nodes = MAX_NODES

    def __init__(self, text: str, source: RecipeFile, *, anchors: bool):
        self.source, self.anchors_allowed = source, anchors
        self.events: Iterator[Event] = YAML(typ="safe", pure=True).parse(text)
        self.findings: list[Diagnostic] = []
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.nodes = 0

    def document(self) -> Node | None:
        """The only document of the stream."""
        next(self.events)  # the stream's start
        event = next(self.events)
        if not isinstance(event, DocumentStartEvent):
            return None
        if event.version and tuple(event.version) != (1, 2):
            raise self._stop(event, "a recipe is YAML 1.2; remove the %YAML line")
        tree = self._node(next(self.events), ())
        next(self.events)  # the document's end
        event = next(self.events)
        if not isinstance(event, StreamEndEvent):
            raise self._stop(event, "a second document starts here; a recipe is one document")
        return tree

    def _place(self, event: Any) -> SourceLocation:
        return SourceLocation(self.source, event.start_mark.line + 1, event.start_mark.column + 1)

    def _stop(self, event: Event, message: str, location: Location = ()) -> _StopReadingError:
        return _StopReadingError(Diagnostic(self._place(event), location, message))

    def _count(self, nodes: int, event: Event, location: Location) -> None:
        self.nodes += nodes
        if self.nodes > self.most_nodes:
            raise self._stop(
                event, f"more than {self.most_nodes:,} values once aliases are expanded", location
            )

    def _node(self, event: Any, location: Location) -> Node:
        if len(location) > MAX_DEPTH:
            raise self._stop(event, f"nested more than {MAX_DEPTH} levels deep")
        if event.anchor is not None and not self.anchors_allowed:
            raise self._stop(
                event,
                f"{'*' if isinstance(event, AliasEvent) else '&'}{event.anchor}: write the value itself",
                location,
            )
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise self._stop(event, f"*{event.anchor} stands for nothing that ends before it", location)
            node, size = self.anchors[event.anchor]
            self._count(size, event, location)
            return node
        before = self.nodes
        self._count(1, event, location)
        node = (
            self._scalar(event, location)
            if isinstance(event, ScalarEvent)
            else self._collection(event, location)
        )
        if event.tag is not None:
            tag = shorten(str(event.tag).replace("tag:yaml.org,2002:", "!!"))
            message = f"the YAML tag {tag} is not allowed; write the plain value"
            self.findings.append(Diagnostic(self._place(event), location, message))
            node = replace(node, broken=True)
        if event.anchor is not None:
            self.anchors[event.anchor] = node, self.nodes - before
        return node

    def plain(self, text: str) -> Scalar:
        """What an unquoted scalar means."""
        return plain_scalar(text)

    def _scalar(self, event: Any, location: Location) -> Node:
        place = self._place(event)
        try:
            return Node(self.plain(event.value) if event.implicit[0] else quoted_scalar(event.value), place)
        except ValueError as error:
            self.findings.append(Diagnostic(place, location, str(error)))
            return Node(event.value, place, broken=True)

    def _collection(self, event: Any, location: Location) -> Node:
        place = self._place(event)
        if isinstance(event, SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(event := next(self.events), SequenceEndEvent):
                items.append(self._node(event, (*location, len(items))))
            return Node(items, place)
        if not isinstance(event, MappingStartEvent):
            raise self._stop(event, "not YAML: expected a value", location)
        mapping: dict[str, Node] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            self._entry(event, location, mapping)
        return Node(mapping, place)

    def _entry(self, event: Any, location: Location, mapping: dict[str, Node]) -> None:
        """One key and its value. Of keys that occur twice the first stays."""
        findings = len(self.findings)
        key = self._node(event, location)
        del self.findings[findings:]  # what was wrong with the key is said below, once
        place = self._place(event)
        name = key.value if isinstance(key.value, str) else None
        shown = shorten(name if name is not None else str(key.plain()))
        node = replace(self._node(next(self.events), (*location, shown)), key_place=place)
        if name is None or key.broken:
            self.findings.append(Diagnostic(place, location, _no_text(event, key)))
        elif not _printable(name):
            self.findings.append(
                Diagnostic(place, location, f"got the key {shown!r}; a key is plain, printable text")
            )
        elif name == "<<":
            self.findings.append(
                Diagnostic(place, location, "<< is not part of YAML 1.2; use `extends`, or repeat the keys")
            )
        elif name in mapping:
            first = mapping[name].key_place or mapping[name].place
            self.findings.append(
                finding_at(node, (*location, name), f"duplicate key; first on line {first.line}", at_key=True)
            )
        else:
            mapping[name] = node


class _LockReader(_Reader):
    """Reads what the toolkit itself wrote: longer, with dates, and with metrics that are not finite."""

    most_nodes = LOCK_NODES

    def plain(self, text: str) -> Scalar:
        """What an unquoted scalar means."""
        try:
            return plain_scalar(text)
        except ValueError:
            return float(text.replace(".", "")) if NOT_FINITE.fullmatch(text) else text


def _no_text(event: Any, key: Node) -> str:
    """Why a key is none, and how it is written as one."""
    if not isinstance(event, ScalarEvent) or event.tag is not None:
        return (
            f"got the key {shorten(str(key.plain()))}, which is a list, a section, an alias or has a tag; a "
            "key is plain text"
        )
    if not event.value:
        return "a key is missing before the colon"
    kinds = {bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    kind = kinds.get(type(key.value), "no text")  # a date, an infinite number
    text = shorten(event.value)
    return (
        f"got the key {text}, which is {kind} in YAML, and a key is text: put it in quotes, "
        f"{json.dumps(text)}"
    )


def _printable(text: str) -> bool:
    return bool(text) and not any(
        unicodedata.category(character)[0] in "CZ" and character != " " for character in text
    )

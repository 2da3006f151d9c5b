"""The part of Go's text/template that our translations use, to see what Ollama will write.

https://pkg.go.dev/text/template: {{ range $i, $_ := .Messages }}, {{ if }}, {{ else }}, {{ end }}, fields,
variables, strings, and, or, not, and comparisons. Anything else is an error here, so that no translation goes
beyond it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[()]|\$?\.?[A-Za-z_][\w.]*|\$\.\w+|\d+)')
RANGE = re.compile(r"range \$i, \$_ := (\.\w+)")
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": lambda one, other: one == other,
    "ne": lambda one, other: one != other,
    "gt": lambda one, other: one > other,
    "lt": lambda one, other: one < other,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
}

Scope = Mapping[str, Any]
"""`.` is what fields are of, `$` the whole, `$i` the number of a message."""


def render(template: str, data: Mapping[str, Any]) -> str:
    """What Go writes. Raises ValueError for what isn't in this part of the language."""
    pieces = ACTION.split(template)
    written, rest = _block(pieces, 0, {".": data, "$": data})
    if rest != len(pieces):
        raise ValueError("an {{ end }} too many")
    return written


def _block(pieces: Sequence[str], place: int, scope: Scope | None) -> tuple[str, int]:
    """What is written up to the {{ end }} or {{ else }} of this block, and where that stands; nothing without
    a scope."""
    written = list[str]()
    while place < len(pieces):
        if place % 2 == 0:
            written.append(pieces[place])
            place += 1
            continue
        action = pieces[place].strip()
        if action in ("end", "else"):
            break
        if action.startswith("range "):
            text, place = _range(pieces, place, scope)
        elif action.startswith("if "):
            text, place = _if(pieces, place, scope)
        else:
            text, place = "" if scope is None else str(_value(action, scope)), place + 1
        written.append(text)
    return "".join(written) if scope is not None else "", place


def _range(pieces: Sequence[str], place: int, scope: Scope | None) -> tuple[str, int]:
    match = RANGE.fullmatch(pieces[place].strip())
    if match is None:
        raise ValueError(pieces[place])
    _, end = _block(pieces, place + 1, None)
    items = _value(match[1], scope) if scope is not None else []
    written = [
        _block(pieces, place + 1, {**(scope or {}), ".": item, "$i": index})[0]
        for index, item in enumerate(items)
    ]
    return "".join(written), end + 1


def _if(pieces: Sequence[str], place: int, scope: Scope | None) -> tuple[str, int]:
    holds = scope is not None and bool(_value(pieces[place].strip().removeprefix("if "), scope))
    written, place = _block(pieces, place + 1, scope if holds else None)
    if pieces[place].strip() == "else":
        other, place = _block(pieces, place + 1, scope if not holds else None)
        written += other
    return written, place + 1


def _value(expression: str, scope: Scope) -> Any:
    words = WORD.findall(expression)
    if "".join(words) != re.sub(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', "", expression):
        raise ValueError(expression)
    return _call(iter([*words, ")"]), scope)


def _call(words: Iterator[str], scope: Scope) -> Any:
    """A function and its operands, or one operand, up to the closing parenthesis."""
    first = next(words)
    operands = []
    if first not in FUNCTIONS:
        operands.append(_operand(first, words, scope))
    for word in words:
        if word == ")":
            break
        operands.append(_operand(word, words, scope))
    if first in FUNCTIONS:
        return FUNCTIONS[first](*operands)
    if len(operands) != 1:
        raise ValueError(first)
    return operands[0]


def _operand(word: str, words: Iterator[str], scope: Scope) -> Any:
    if word == "(":
        return _call(words, scope)
    if word.startswith('"'):
        return word[1:-1].replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")
    if word.isdigit():
        return int(word)
    if word.startswith("$."):
        return scope["$"][word[2:]]
    return scope[word] if word.startswith("$") else scope["."][word.removeprefix(".")]

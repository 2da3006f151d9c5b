"""What tests compare with: kept here while a program runs, and never given to it.

`assert add(1, 2) == 3` runs as `assert add(1, 2) == __expected__[0]`, whose comparison asks this process
whether the value that the program came up with is 3. Who doesn't know the value can't answer in its place,
whatever is done inside the program; and a wrong answer is final, so that it isn't found by trying. Only
assertions that every run to the end makes are treated so: all of their comparisons must have been made, and
have held.
"""

import ast
import itertools
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.text import clean_for_terminal
from finetune.evaluation.sandbox.canonical import LONGEST, canonical
from finetune.evaluation.sandbox.confine import EXPECTED

LONGEST_LINE = 2 * LONGEST
STAND_IN = re.compile(rf"{EXPECTED}\[(\d+)\s*\]")


@dataclass(frozen=True)
class ValueCheck:
    """A value that an assertion compares with."""

    written: str
    """As it stands in the program."""
    canonical: str
    place: str
    """Its assertion, and the line."""


@dataclass(frozen=True)
class Kept:
    """A program without the values that it compares with, and those."""

    program: str
    comparisons: tuple[ValueCheck, ...]


def kept_back(program: str) -> Kept:
    """The program with a stand-in for each literal that an assertion compares with; as it is where it is no
    Python.

    Raises RecursionError or MemoryError where it is nested too deeply.
    """
    text = program.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # which the program's own process will say with its line
        return Kept(program, ())
    whole = text.encode()
    lines = whole.split(b"\n")
    starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    assertions = {(node.lineno, node.col_offset): node for node in _always(tree.body)}
    pieces: list[bytes] = []
    comparisons: list[ValueCheck] = []
    end = 0
    for (line, _), assertion in sorted(assertions.items()):
        for literal in _literals(assertion.test):
            first, last = starts[literal.lineno - 1] + literal.col_offset, _end_of(literal, starts)
            known, written = canonical(ast.literal_eval(literal)), whole[first:last]
            if known:
                # As many lines as before, so that every other line keeps its number.
                stand_in = f"{EXPECTED}[{len(comparisons)}".encode() + b"\n" * written.count(b"\n") + b"]"
                pieces += [whole[end:first], stand_in]
                end = last
                place = f"{lines[line - 1].decode().strip()} (line {line})"
                comparisons.append(ValueCheck(written.decode(), known, place))
    return Kept(b"".join([*pieces, whole[end:]]).decode(), tuple(comparisons))


def _end_of(node: ast.expr, starts: list[int]) -> int:
    assert node.end_lineno is not None and node.end_col_offset is not None  # noqa: S101, PT018 - the parser gives them
    return starts[node.end_lineno - 1] + node.end_col_offset


def _literals(test: ast.expr) -> Iterator[ast.expr]:
    """The literals that have to be equal to something where an assertion holds, in the order of the text."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for part in test.values:
            yield from _literals(part)
    elif isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        sides = [side for side in (test.left, test.comparators[0]) if _is_literal(side)]
        if len(sides) == 1:
            yield sides[0]


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def _always(body: list[ast.stmt]) -> Iterator[ast.Assert]:
    """The assertions of a module that are made whenever it comes to its end: its own, and those of functions
    that it calls."""
    functions: dict[str, ast.FunctionDef] = {}
    for statement in body:
        match statement:
            case ast.Assert():
                yield statement
            case ast.FunctionDef(name=name):
                functions[name] = statement
            case ast.Expr(value=ast.Call(func=ast.Name(id=name))) if name in functions:
                yield from _straight(functions[name])


def _straight(function: ast.FunctionDef) -> Iterator[ast.Assert]:
    """The assertions that a call makes if nothing is raised."""
    lazy = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))
    for statement in [] if lazy or function.decorator_list else function.body:
        if isinstance(statement, ast.Assert):
            yield statement
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        elif any(isinstance(node, ast.Return) for node in ast.walk(statement)):
            return


class Exchange:
    """What a program's process says through its channel, and what it is answered."""

    def __init__(self, channel: socket.socket, kept: Kept, token: bytes):
        channel.setblocking(False)
        self.channel, self.kept, self.token = channel, kept, token
        self.broken = ""
        """Why it has to end, once it says what no program has to say."""
        self._waiting = b""
        self._equal: set[int] = set()
        self._unequal: set[int] = set()
        self._ended = False
        self._failure = ""

    def listen(self) -> int | None:
        """Read what has come, and answer; the number of bytes, 0 where there will be no more, None where
        there are none yet."""
        try:
            read = self.channel.recv(2**16)
        except BlockingIOError:
            return None
        except ConnectionError:  # it ended before it took its last answer
            return 0
        *lines, self._waiting = (self._waiting + read).split(b"\n")
        try:
            for line in lines:
                self._hear(line)
        except OSError:  # it has ended, or takes no answers
            self.broken = "asked without end"
        if len(self._waiting) > LONGEST_LINE:
            self.broken = "wrote where only its verdict is to be written"
        return len(read)

    def why_not(self, ending: str) -> str:
        """Why the program has not passed; "" where it has. `ending` is the reason where it gave none
        itself."""
        if self._unequal:
            return self._failure or f"assertion failed: {self.kept.comparisons[min(self._unequal)].place}"
        if not self._ended:
            return self._failure or ending
        unmade = [each for number, each in enumerate(self.kept.comparisons) if number not in self._equal]
        return f"came to its end without this comparison: {unmade[0].place}" if unmade else ""

    def _hear(self, line: bytes) -> None:
        if line == self.token:
            self._ended = True
        elif line.startswith(b"?"):
            number, _, value = line[1:].decode("ascii", "replace").partition(" ")
            self.channel.send(b"=" if self._is_expected(number, value) else b"!")
        elif not self._failure:
            text = " ".join(clean_for_terminal(line.decode("utf-8", "replace")).split())
            self._failure = STAND_IN.sub(self._written, text) or "failed without a reason"

    def _is_expected(self, number: str, value: str) -> bool:
        if not number.isdecimal() or len(number) > 9 or int(number) >= len(self.kept.comparisons):
            return False
        equal = self.kept.comparisons[int(number)].canonical == value
        (self._equal if equal else self._unequal).add(int(number))
        return equal

    def _written(self, match: re.Match[str]) -> str:
        """The literal in the place of its stand-in, for a person."""
        number = match[1]
        known = len(number) < 10 and int(number) < len(self.kept.comparisons)
        return self.kept.comparisons[int(number)].written if known else match[0]

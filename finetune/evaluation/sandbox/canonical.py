"""Values as texts that are equal where Python says that the values are, and what stands in for a value that
is kept elsewhere.

For both sides of a sandbox: standard library only, and little of it.
"""

import _thread
import os
from collections.abc import Iterator, Mapping, Set

LONGEST = 2**18
"""A value that takes more characters is none that a test would write down."""


def stand_ins(channel: int) -> object:
    """A table of what stands in for values that the process at the other end keeps: it is asked when they are
    compared."""
    read, write, lock = os.read, os.write, _thread.allocate_lock()

    class Expected:
        __slots__ = ("number",)
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, number: int) -> None:
            self.number = number

        def __eq__(self, value: object) -> bool:
            with lock:
                waiting = f"?{self.number} {canonical(value)}\n".encode()
                while waiting:
                    waiting = waiting[write(channel, waiting) :]
                return read(channel, 1) == b"="

        def __repr__(self) -> str:
            return "what its test expects"

    class Table:
        def __getitem__(self, number: int) -> Expected:
            return Expected(number)

    return Table()


def canonical(value: object) -> str:
    """A text of printable ASCII, the same for values that Python calls equal; "" for what equals no literal,
    or is too long."""
    pieces, room = [], LONGEST
    try:
        for piece in _pieces(value):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                return ""
    except _UnwrittenError:
        return ""
    return "".join(pieces)


class _UnwrittenError(Exception):
    """A value that no literal equals."""


def _pieces(value: object) -> Iterator[str]:
    """The parts of a value's canonical text. Raises _UnwrittenError."""
    match value:
        case None:
            yield "N"
        case str():
            yield f"s{value.encode('utf-16-be', 'surrogatepass').hex()}."
        case bytes() | bytearray() | memoryview():
            yield f"b{bytes(value).hex()}."
        case complex() if value.imag:
            yield from ("j", *_pieces(value.real), *_pieces(value.imag))
        case complex():
            yield from _pieces(value.real)
        case list() | tuple():
            yield "[" if isinstance(value, list) else "("
            for item in value:
                yield from _pieces(item)
            yield "]"
        case Set() | Mapping() if len(value) > LONGEST:
            raise _UnwrittenError
        case Set():
            yield from ("{", *sorted("".join(_pieces(item)) for item in value), "}")
        case Mapping():
            yield from (
                ":",
                *sorted("".join((*_pieces(key), *_pieces(below))) for key, below in value.items()),
                "}",
            )
        case _ if value is ...:
            yield "E"
        case _ if hasattr(type(value), "as_integer_ratio"):  # of int, bool, float, Fraction and Decimal
            yield _number(value)
        case _:
            raise _UnwrittenError


def _number(value: object) -> str:
    """The exact value of a number, of whatever type."""
    try:
        above, below = value.as_integer_ratio()  # type: ignore[attr-defined]
    except (OverflowError, ValueError):  # infinite; not a number equals nothing, itself included
        if value != value:
            raise _UnwrittenError from None
        return f"n{float(value)}."  # type: ignore[arg-type]
    return f"n{above:x}/{below:x}."

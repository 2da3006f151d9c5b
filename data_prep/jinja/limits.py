"""How much a template may build, and what is checked before a filter, a method or a format runs.

Two limits apply. No single text, and no list with its contents, may be longer than the row allows
(`most_characters`). And everything that one rendering makes is counted (`left`, and `left_in_steps` for
concatenation and slicing), so that many medium-sized values are stopped as well. Operations that make much
from little at once (widths, repeats, joins, indents) are estimated before they run, in CHECKS and
METHOD_CHECKS.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.filters import make_attrgetter
from jinja2.utils import Namespace

BASE_CHARACTERS = 1_000_000
GROWTH = 16
"""A text or list may hold BASE_CHARACTERS plus GROWTH times the text that is passed to the rendering."""
BASE_TOTAL = 64_000_000
"""Everything that a rendering makes may be BASE_TOTAL plus GROWTH times the text that is passed in."""
GROWTH_IN_STEPS = 4096
"""What `+`, `~` and slices make is counted separately, up to BASE_TOTAL plus this many times the text that is
passed in: a template that builds a long conversation turn by turn makes the complete text anew with each
turn, and discards the last one."""
LARGEST_NUMBER = 1_000_000
"""The largest width or count that a filter or method is called with."""
LONGEST_PRETTY = 20_000
"""pprint indents by the length of keys, so its output is quadratic in its input."""
DEEPEST = 1000
"""Maximum nesting of lists; Python can't print deeper ones."""
TOO_MUCH = "it makes too many texts and lists, or too long ones"
ITEM, CONTAINER = 16, 64
"""The cost of an item, and of a list or tuple made for it: about their bytes."""

TextLimits = (str, bytes, bytearray)
Containers = (list, tuple, dict, set, frozenset, Mapping, MappingView, Namespace)


class LimitExceeded(TemplateRuntimeError):
    """A template that would take too long or write too much."""


class OutOfTime(LimitExceeded):
    """A template that took too long."""


def measured(value: Any, most: int, each: int = 1, level: int = 0) -> int:
    """The approximate length of a value as text, contents included; the count stops above `most`.

    Each item costs `each`, and `level` for each container around it, in addition to its own length.
    """
    if isinstance(value, TextLimits):
        return len(value)
    size = 0
    inside: list[Iterator[Any]] = [iter((value,))]
    while inside:
        for item in inside[-1]:
            size += each + level * (len(inside) - 1)
            if isinstance(item, TextLimits):
                size += len(item)
            elif isinstance(item, Containers):
                inside.append(_parts(item))
                if len(inside) > DEEPEST:
                    raise LimitExceeded(f"it nests lists or objects more than {DEEPEST:,} deep")
                break
            elif isinstance(item, int):
                size += item.bit_length() // 3
            if size > most:
                return size
        else:
            inside.pop()
    return size


def _parts(container: Any) -> Iterator[Any]:
    if isinstance(container, Namespace):
        container = object.__getattribute__(container, "_Namespace__attrs")
    if isinstance(container, Mapping):
        return (part for pair in container.items() for part in pair)
    return iter(container)


class Budget:
    """The characters that one rendering may make."""

    most_characters = BASE_CHARACTERS
    left = BASE_TOTAL
    left_in_steps = BASE_TOTAL

    def fill(self, input_characters: int) -> None:
        """Start again, for a rendering to which this much text is passed."""
        more = GROWTH * input_characters
        self.most_characters, self.left = BASE_CHARACTERS + more, BASE_TOTAL + more
        self.left_in_steps = BASE_TOTAL + GROWTH_IN_STEPS * input_characters

    def charge(self, size: int) -> None:
        """Count what is made; refuse more than the total."""
        self.left -= size
        if self.left < 0:
            raise LimitExceeded(TOO_MUCH)

    def charge_step(self, size: int) -> None:
        """The same for the results of concatenation and slicing."""
        self.left_in_steps -= size
        if self.left_in_steps < 0:
            raise LimitExceeded(TOO_MUCH)

    def check_size(self, size: int) -> None:
        """Refuse one text or list that is too long."""
        if size > self.most_characters:
            raise LimitExceeded(f"it makes a text or list longer than {self.most_characters:,} characters")

    def check_number(self, number: Any) -> None:
        """Refuse a width or count that is too large."""
        if isinstance(number, int) and abs(number) > LARGEST_NUMBER:
            raise LimitExceeded(f"it uses a width or count of {number:,}")

    def check_whole(self, value: Any) -> None:
        """Refuse a list or object that is too long as text, or that contains another many times over."""
        if isinstance(value, Containers):
            self.check_size(measured(value, self.most_characters))

    def text(self, value: Any) -> str:
        """The value as Jinja prints it."""
        self.check_whole(value)
        return str(value)

    def charged(self, value: Any) -> Any:
        """The value, once it is counted."""
        if isinstance(value, TextLimits):
            self.check_size(len(value))
            self.charge(len(value))
        elif isinstance(value, list | tuple):
            self.check_size(len(value))
            nested = bool(value) and isinstance(value[0], list | tuple)
            self.charge(CONTAINER + len(value) * (ITEM + CONTAINER * nested))
        elif isinstance(value, dict):
            self.check_whole(value)
            self.charge(CONTAINER * (1 + len(value)))
        return value

    def check_pattern(self, pattern: str, sign: str, *values: Any) -> None:
        """Refuse a pattern of `%` or `format` with too long a result: its widths, and each value in each
        placeholder."""
        if re.search(r"%[^%]*?\*" if sign == "%" else r"\{[^{}]*\{[^{]", pattern):
            raise LimitExceeded("it takes the width of a text from another value")
        widths = sum(int(digits) for digits in re.findall(r"\d+", pattern))
        longest = max((measured(value, self.most_characters) for value in values), default=0)
        self.check_size(len(pattern) + widths + pattern.count(sign) * longest)


Check = Callable[..., tuple[Any, ...] | None]
"""Takes the budget and a filter's arguments; gives those to call it with where they are not the same."""


def _items(value: Any) -> Any:
    """A value that can be iterated twice: a generator's items as a list."""
    return value if isinstance(value, str | list | tuple) else list(value)


def _width(budget: Budget, value: Any, width: Any = 0, *others: Any) -> None:
    budget.check_whole(value)
    budget.check_number(width)


def _indent(budget: Budget, value: Any, width: Any = 4, *others: Any, **options: Any) -> None:
    budget.check_number(width)
    text = budget.text(value)
    by = width if isinstance(width, int) else len(budget.text(width))
    budget.check_size(len(text) + len(text.splitlines()) * (by + 1))


def _wordwrap(
    budget: Budget,
    value: Any,
    width: Any = 79,
    break_long_words: Any = True,
    wrapstring: Any = None,
    *others: Any,
    **options: Any,
) -> None:
    text = budget.text(value)
    lines = len(text.split()) + len(text.splitlines()) + len(text) // max(1, int(width))
    budget.check_size(len(text) + lines * len(budget.text(wrapstring or "\n")))


def _urlize(budget: Budget, value: Any, *others: Any, **options: Any) -> None:
    text = budget.text(value)
    added = 100 + measured([others, options], budget.most_characters)
    budget.check_size(len(text) + added * sum(map(text.count, ".:@")))


def _replace(budget: Budget, value: Any, old: Any, new: Any, *others: Any, **options: Any) -> None:
    parts = [part if isinstance(part, TextLimits) else budget.text(part) for part in (value, old, new)]
    text, old, new = parts
    budget.check_size(len(text) + text.count(old) * len(new))


def _join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> tuple[Any, ...]:
    items = _items(value)
    size = measured(items, budget.most_characters)
    budget.check_size(size + len(items) * len(budget.text(d)))
    return (items, d, attribute)


def _sum(budget: Budget, iterable: Any, attribute: Any = None, start: Any = 0) -> tuple[Any, ...]:
    items = _items(iterable)
    if isinstance(start, list | tuple):  # adding lists copies the previous sum each time
        get = make_attrgetter(budget, attribute) if attribute is not None else lambda item: item  # type: ignore[arg-type]
        total = len(start) + sum(len(part) for part in map(get, items) if isinstance(part, list | tuple))
        budget.check_size(total)
        budget.charge(total * (1 + len(items)))
    return (items, attribute, start)


def _tojson(budget: Budget, value: Any, *others: Any, **options: Any) -> None:
    added = [*others, *options.values()]  # an indent, or separators
    for number in added:
        budget.check_number(number)
    spaces = sum(
        number if isinstance(number, int) else measured(number, LARGEST_NUMBER) for number in added if number
    )
    budget.check_size(measured(value, budget.most_characters, each=1 + spaces, level=spaces))


def _pprint(budget: Budget, value: Any) -> None:
    if measured(value, LONGEST_PRETTY) > LONGEST_PRETTY:
        raise LimitExceeded(
            f"it calls pprint with more than {LONGEST_PRETTY:,} characters; tojson takes more"
        )


def _format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    budget.check_pattern(budget.text(value), "%", *args, *kwargs.values())


def _batch(budget: Budget, value: Any, linecount: Any, fill_with: Any = None) -> None:
    budget.check_number(linecount)
    if fill_with is not None:
        budget.charge(ITEM * linecount)


def _slice(budget: Budget, value: Any, slices: Any, fill_with: Any = None) -> None:
    budget.check_number(slices)
    budget.charge(CONTAINER * slices)


def _round(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> None:
    budget.check_number(precision * 100)


def _nothing(budget: Budget, *args: Any, **kwargs: Any) -> None:
    pass


def check_texts(budget: Budget, *args: Any, **kwargs: Any) -> None:
    """The check for all other filters, which may convert their arguments to text."""
    for value in args:
        budget.check_whole(value)


CHECKS: dict[str, Check] = {
    "center": _width, "indent": _indent, "wordwrap": _wordwrap, "urlize": _urlize, "replace": _replace,
    "join": _join, "sum": _sum, "tojson": _tojson, "pprint": _pprint, "format": _format, "batch": _batch,
    "slice": _slice, "round": _round,
}  # fmt: skip
"""By filter."""
for _name in (
    "abs", "attr", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list",
    "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique",
):  # fmt: skip
    CHECKS[_name] = _nothing  # these make no text from a list, and nothing longer than their input


def _expandtabs(budget: Budget, text: Any, tabsize: Any = 8) -> None:
    budget.check_size(len(text) + text.count("\t" if isinstance(text, str) else b"\t") * abs(tabsize))


def _translate(budget: Budget, text: Any, table: Any, *others: Any) -> None:
    values: Iterable[Any] = table.values() if isinstance(table, dict) else _items(table)
    budget.check_size(
        len(text) * max((len(value) for value in values if isinstance(value, TextLimits)), default=1)
    )


def _join_method(budget: Budget, separator: Any, value: Any) -> tuple[Any, ...]:
    return _join(budget, value, separator)[:1]


METHOD_CHECKS: dict[str, Check] = {
    "center": _width, "ljust": _width, "rjust": _width, "zfill": _width, "to_bytes": _width,
    "expandtabs": _expandtabs, "replace": _replace, "join": _join_method, "translate": _translate,
}  # fmt: skip
"""By method of a text, of bytes, or of an integer."""

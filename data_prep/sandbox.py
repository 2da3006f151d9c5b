"""Jinja with limits: a template that loops without end or builds huge texts is stopped, whatever it does.

The sandbox is transformers' own, with every extension and filter that chat templates know; limits are added to it. Each
turn of a loop and each call looks at the clock, and what makes texts longer (repeats, joins, widths) at the size.
"""

import functools
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from jinja2 import StrictUndefined, Template, TemplateRuntimeError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0
"""The longest that one rendering may take."""
BASE_CHARACTERS = 1_000_000
GROWTH = 16
"""A rendering may hold BASE_CHARACTERS and GROWTH times the text that goes into it."""
LARGEST_NUMBER = 1_000_000
"""The largest whole number that a filter or function is called with: a width, a count."""


class LimitExceeded(TemplateRuntimeError):
    """A template that would take too long or write too much."""


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """A sandbox whose templates have a budget of time and of characters."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    deadline = float("inf")
    most_characters = BASE_CHARACTERS

    def begin(self, input_characters: int) -> None:
        """Start the clock of one rendering."""
        self.deadline = time.monotonic() + SECONDS
        self.most_characters = BASE_CHARACTERS + GROWTH * input_characters

    def tick(self) -> None:
        """Stop a rendering whose time is over."""
        if time.monotonic() > self.deadline:
            raise LimitExceeded(f"it takes longer than {SECONDS:g} seconds")

    def joined(self, *parts: Any) -> str:
        """What `~` makes of its parts."""
        texts = [str(part) for part in parts]
        self.check_size(sum(map(len, texts)))
        return "".join(texts)

    def check_size(self, characters: int) -> None:
        """Stop a rendering that holds too much."""
        if characters > self.most_characters:
            raise LimitExceeded(f"it makes a text or list longer than {self.most_characters:,} characters")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%` within the limits."""
        if operator == "+" and type(left) is str and type(right) is str:  # nearly all of what templates do
            self.check_size(len(left) + len(right))
            return left + right
        self.tick()
        if operator == "**" and abs(right) * max(1, int(abs(left)).bit_length()) > 10_000:
            raise LimitExceeded("it raises a number to too high a power")
        sized = [value for value in (left, right) if isinstance(value, str | list | tuple)]
        if operator == "+" and len(sized) == 2:
            self.check_size(sum(map(len, sized)))
        if operator == "*" and sized:
            number = right if sized[0] is left else left
            self.check_size(len(sized[0]) * max(1, number if isinstance(number, int) else 1))
        if (
            operator == "*"
            and not sized
            and all(isinstance(value, int) and value.bit_length() > 5_000 for value in (left, right))
        ):
            raise LimitExceeded("it multiplies numbers of too many digits")
        if operator == "%" and isinstance(left, str):
            self._check_widths(left, (right,))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        if function == self.tick:
            return self.tick()
        self._check_arguments(
            (getattr(function, "__self__", None), *args, *kwargs.values()), str(getattr(function, "__name__", ""))
        )
        return self._measured(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: D102
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            self._check_widths(value.__self__, ())
        return wrapped

    def filter_within_limits(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, refusing large numbers and texts that grow too long."""

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self._check_arguments((*args, *kwargs.values()), name)
            return self._measured(function(*args, **kwargs))

        return limited

    def _measured(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple):
            self.check_size(len(value))
        return value

    def _check_arguments(self, arguments: tuple[Any, ...], name: str) -> None:
        self.tick()
        for value in arguments:
            if name != "range" and isinstance(value, int) and abs(value) > LARGEST_NUMBER:
                raise LimitExceeded(f"it calls {name or 'a function'} with {value:,}")
        texts = [value for value in arguments if isinstance(value, str)]
        if name in ("format", "format_map") and texts:
            self._check_widths(texts[0], arguments[1:])
        if name == "replace" and len(texts) >= 3:
            self.check_size(len(texts[0]) + (texts[0].count(texts[1])) * len(texts[2]))
        if name == "join":
            items = next((value for value in arguments if isinstance(value, list | tuple)), ())
            separators = sum(len(text) for text in texts) * len(items)
            self.check_size(separators + sum(len(item) for item in items if isinstance(item, str)))

    def _check_widths(self, pattern: str, arguments: tuple[Any, ...]) -> None:
        if re.search(r"\d{7,}", pattern) or any(isinstance(value, int) and value > LARGEST_NUMBER for value in arguments):
            raise LimitExceeded("it pads a text to too great a width")

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile with a look at the clock in every loop and macro, and with `~` under the limit of size."""
        repeated = [*source.find_all(nodes.For), *source.find_all(nodes.Macro), *source.find_all(nodes.CallBlock)]
        for block in cast("list[nodes.For]", repeated):
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(tick, lineno=block.lineno))
        _replace_joins(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)


def _replace_joins(node: nodes.Node) -> None:
    """Every `a ~ b` below a node becomes a call of `joined`."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _without_join(value))
        elif isinstance(value, list):
            setattr(node, name, [_without_join(item) if isinstance(item, nodes.Node) else item for item in value])


def _without_join(node: nodes.Node) -> nodes.Node:
    _replace_joins(node)
    if isinstance(node, nodes.Concat):
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None, lineno=node.lineno)
    return node


def _limited(base: Any, **options: Any) -> LimitedSandbox:
    sandbox = base.overlay(**options)
    sandbox.__class__ = LimitedSandbox
    sandbox.filters = {name: sandbox.filter_within_limits(name, function) for name, function in base.filters.items()}
    return sandbox  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def chat_sandbox() -> LimitedSandbox:
    """transformers' sandbox for chat templates, with limits."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _limited(_compile_jinja_template("").environment)


@lru_cache(maxsize=1)
def row_sandbox() -> LimitedSandbox:
    """The sandbox for a user's own texts in format template: a name that the row lacks is an error."""
    return _limited(ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True))


@lru_cache(maxsize=32)
def _compiled(sandbox: LimitedSandbox, text: str) -> Template:
    sandbox.begin(len(text))
    return sandbox.from_string(text)


def render_limited(sandbox: LimitedSandbox, text: str, variables: dict[str, Any], input_characters: int) -> str:
    """A template's text. Raises jinja2's TemplateError, LimitExceeded among them, and what expressions raise."""
    template = _compiled(sandbox, text)
    sandbox.begin(input_characters)
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(variables):
            length += len(piece)
            sandbox.check_size(length)
            sandbox.tick()
            pieces.append(piece)
    except (RecursionError, MemoryError) as error:
        raise LimitExceeded("it calls itself without end, or needs too much memory") from error
    return "".join(pieces)

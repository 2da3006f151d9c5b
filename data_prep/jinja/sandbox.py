"""Jinja with limits: a template that loops endlessly or builds huge texts is stopped, whatever it does.

The sandbox is transformers' own, with every extension and filter that chat templates use; limits are added to
it. Every loop iteration and call checks the time limit, and everything that makes texts or lists counts them
(limits.py).
"""

import functools
from collections.abc import Callable, Iterator
from functools import lru_cache
from time import monotonic
from typing import Any, NoReturn, cast

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    TemplateRuntimeError,
    TemplateSyntaxError,
    UndefinedError,
    nodes,
)
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_prep.jinja.limits import (
    CHECKS,
    CONTAINER,
    ITEM,
    METHOD_CHECKS,
    Budget,
    Check,
    LimitExceeded,
    OutOfTime,
    TextLimits,
    check_texts,
    measured,
)

SECONDS = 5.0
"""Maximum duration of one rendering."""
LONGEST_MESSAGE = 500
"""Maximum characters: the error message of a template may contain a complete row."""


class LimitedCode(CodeGenerator):
    """Jinja's compiler; code that makes or writes values without a call or filter goes through the sandbox as
    well."""

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: D102
        if isinstance(node.node, nodes.EnvironmentAttribute):  # a tick
            self._through(node.node.name, node.args, frame)
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: D102
        self._through("joined", node.nodes, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: D102
        self._around(
            "sliced" if isinstance(node.arg, nodes.Slice) else "", super().visit_Getitem, node, frame
        )

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: D102
        self._around("literal" if _varies(node.items) else "", super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: D102
        self._around(
            "literal" if node.ctx == "load" and _varies(node.items) else "", super().visit_Tuple, node, frame
        )

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: D102
        self._around("literal" if node.items else "", super().visit_Dict, node, frame)

    def _through(self, method: str, arguments: list[nodes.Expr], frame: Frame) -> None:
        self.write(f"environment.{method}(")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def _around(self, method: str, visit: Callable[..., None], node: nodes.Expr, frame: Frame) -> None:
        self.write(f"environment.{method}(" if method else "")
        visit(node, frame)
        self.write(")" if method else "")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        self.write("environment.written(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_post(node, frame, finalize)


def _varies(items: list[nodes.Expr]) -> bool:
    return any(not isinstance(item, nodes.Const) for item in items)


class LimitedSandbox(Budget, ImmutableSandboxedEnvironment):
    """A sandbox whose templates have a budget of time and of characters."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = LimitedCode
    deadline = float("inf")

    def begin(self, input_characters: int) -> None:
        """Start the clock of one rendering."""
        self.deadline = monotonic() + SECONDS
        self.fill(input_characters)

    def tick(self, written: int = 0) -> None:
        """Stop a rendering that is out of time; count the template text that a loop iteration writes."""
        self.left -= written
        if self.left < 0:
            self.charge(0)
        if monotonic() > self.deadline:
            raise OutOfTime(f"it takes longer than {SECONDS:g} seconds")

    def written(self, value: Any) -> str:
        """What `{{ value }}` writes."""
        if type(value) is not str:
            if self.finalize is not None:
                self.finalize(value)
            if isinstance(value, Iterator):  # its text would be an address, different each time
                raise TemplateRuntimeError(
                    f"it writes a {type(value).__name__}, which has no text; add `| list` or `| join`"
                )
            value = value if isinstance(value, str) else self.text(value)
        self.left -= len(value)
        if self.left < 0:
            self.charge(0)
        return value

    def joined(self, *parts: Any) -> str:
        """The result of `~`."""
        if self.finalize is not None:
            for part in parts:
                self.finalize(part)
        text = "".join([part if type(part) is str else self.text(part) for part in parts])
        self.check_size(len(text))
        self.charge_step(len(text))
        return text

    def sliced(self, value: Any) -> Any:
        """A part of a text or list: a copy."""
        self.charge_step(len(value) * (1 if isinstance(value, TextLimits) else ITEM))
        return value

    def literal(self, value: Any) -> Any:
        """A list, tuple or object literal in the template: it may contain another one many times over."""
        self.check_whole(value)
        self.charge(CONTAINER * (1 + len(value)))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%` within the limits."""
        if operator == "+" and type(left) is str and type(right) is str:  # nearly all of what templates do
            size = len(left) + len(right)
            self.left_in_steps -= size
            if size > self.most_characters or self.left_in_steps < 0:
                self.check_size(size)
                self.charge_step(0)
            return left + right
        self.tick()
        if operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
            return self._added(left, right)
        if operator == "**" and abs(right) * max(1, int(abs(left)).bit_length()) > 10_000:
            raise LimitExceeded("it raises a number to too high a power")
        if operator == "*":
            self._check_product(left, right)
        if operator == "%" and isinstance(left, TextLimits):
            self.check_pattern(left if isinstance(left, str) else left.decode("latin-1"), "%", right)
        return self.charged(super().call_binop(context, operator, left, right))

    def _added(self, left: Any, right: Any) -> Any:
        """Two lists as one. The shorter is measured each time, the complete one if it grows past a power of
        two."""
        size = len(left) + len(right)
        self.check_size(size)
        self.charge_step(ITEM * size + measured(min(left, right, key=len), self.most_characters))
        result = left + right
        if size.bit_length() > max(len(left), len(right)).bit_length():
            self.check_whole(result)
        return result

    def _check_product(self, left: Any, right: Any) -> None:
        sized = [value for value in (left, right) if isinstance(value, (*TextLimits, list, tuple))]
        if sized:
            number = right if sized[0] is left else left
            self.check_size(
                measured(sized[0], self.most_characters) * (number if isinstance(number, int) else 1)
            )
        elif all(isinstance(value, int) and value.bit_length() > 5_000 for value in (left, right)):
            raise LimitExceeded("it multiplies numbers with too many digits")

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        self.tick()
        owner = getattr(function, "__self__", None)
        check = (
            METHOD_CHECKS.get(getattr(function, "__name__", ""))
            if isinstance(owner, (*TextLimits, int))
            else None
        )
        if check is not None:
            args = check(self, owner, *args, **kwargs) or args
        return self.charged(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: D102
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            self.check_pattern(value.__self__, "{", *args, *kwargs.values())
            return wrapped(*args, **kwargs)

        return functools.update_wrapper(limited, wrapped)

    def filter_within_limits(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, after a check that its result won't be too long; its result is counted."""
        check: Check = CHECKS.get(name, check_texts)
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            changed = check(self, *args[first:], **kwargs)
            if changed is None:
                return self.charged(function(*args, **kwargs))
            return self.charged(function(*args[:first], *changed))

        return limited

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile with a check of the time limit in every loop and macro."""
        repeated = [
            *source.find_all(nodes.For),
            *source.find_all(nodes.Macro),
            *source.find_all(nodes.CallBlock),
        ]
        for block in cast("list[nodes.For]", repeated):
            own = nodes.Const(sum(len(data.data) for data in block.find_all(nodes.TemplateData)))
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [own], [], None, None)
            block.body.insert(0, nodes.ExprStmt(tick, lineno=block.lineno))
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)


class StrictInLists(StrictUndefined):
    """An unknown name is an error inside a printed list too."""

    __slots__ = ()
    __repr__ = StrictUndefined.__str__


def _drawn(name: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise TemplateRuntimeError(
            f"{name} is not repeatable, but a template must write the same text each time; "
            "other_prompts draws with the recipe's seed"
        )

    return refuse


def _limited(base: Any, **options: Any) -> LimitedSandbox:
    sandbox = base.overlay(**options)
    sandbox.__class__ = LimitedSandbox
    sandbox.filters = {
        name: sandbox.filter_within_limits(name, function) for name, function in base.filters.items()
    }
    sandbox.filters["random"] = _drawn("random")
    sandbox.globals = base.globals | {"lipsum": _drawn("lipsum")}
    return sandbox


@lru_cache(maxsize=1)
def chat_sandbox() -> LimitedSandbox:
    """transformers' sandbox for chat templates, with limits."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _limited(_compile_jinja_template("").environment)


@lru_cache(maxsize=1)
def row_sandbox() -> LimitedSandbox:
    """The sandbox for a user's own texts in format template: a name that the row lacks, or a null, is an
    error."""
    return _limited(
        ImmutableSandboxedEnvironment(undefined=StrictInLists, keep_trailing_newline=True, finalize=_no_null)
    )


def _no_null(value: Any) -> Any:
    if value is None:
        raise UndefinedError(
            'it writes a value that is null here, which would become "None"; write {{ name or "" }}'
        )
    return value


@lru_cache(maxsize=32)
def _compiled(sandbox: LimitedSandbox, text: str) -> Template:
    sandbox.begin(len(text))
    return sandbox.from_string(text)


def render_limited(
    sandbox: LimitedSandbox, text: str, variables: dict[str, Any], input_characters: int
) -> str:
    """A template's text. Whatever fails in it is raised as jinja2's TemplateError, of which LimitExceeded is
    one."""
    try:
        template = _compiled(sandbox, text)
        sandbox.begin(input_characters)
        rendered = "".join(template.generate(variables))  # already counted by `written` and `tick`
        sandbox.check_size(len(rendered))
    except TemplateError:
        raise
    except (RecursionError, MemoryError) as error:
        raise LimitExceeded(
            "it is nested too deeply, recurses endlessly, or needs too much memory"
        ) from error
    except Exception as error:  # a template is a user's program: its expressions may raise anything
        raise TemplateRuntimeError(str(error) or type(error).__name__) from error
    if not rendered.isascii():
        try:
            rendered.encode("utf-16-le")  # fails like UTF-8 would, but is faster
        except UnicodeEncodeError as error:
            raise TemplateRuntimeError(
                "it writes half of a surrogate pair, which is not valid text"
            ) from error
    return rendered


def reason(error: TemplateError) -> str:
    """The message of a template's error, shortened."""
    said = str(error.message or type(error).__name__)
    said = said if len(said) <= LONGEST_MESSAGE else f"{said[:LONGEST_MESSAGE]}..."
    return f"{said} (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else said

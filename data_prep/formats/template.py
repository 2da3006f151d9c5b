"""Rows written with the user's own Jinja texts."""

from collections.abc import Iterator
from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions, Option
from data_prep.messages import Conversation, Message, PlainText


def parse_template(values: dict[str, Any], options: FormatOptions) -> list[Conversation | PlainText]:
    """One question and its answer, or a plain text, as the recipe's two templates write the row."""
    template = options.template
    if template is None:
        raise ValueError("format template needs its texts")
    prompt, completion = (_render(getattr(template, name), values, name) for name in ("prompt", "completion"))
    if template.chat:
        return [Conversation((Message("user", prompt), Message("assistant", completion)))]
    return [PlainText(prompt, completion)]


def _render(text: str, values: dict[str, Any], name: str) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

    from data_prep.jinja.sandbox import reason, render_limited, row_sandbox

    try:
        return render_limited(row_sandbox(), text, values, sum(map(len, _texts(values))))
    except TemplateSyntaxError as error:
        raise ValueError(f"template.{name} is not a valid Jinja template: {reason(error)}") from error
    except UndefinedError as error:
        there = ", ".join(map(repr, values)) or "no columns at all"
        raise ValueError(f"template.{name}: {reason(error)}; the row has {there}") from error
    except TemplateError as error:
        raise ValueError(f"template.{name} fails on this row: {reason(error)}") from error


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


FORMAT = Format(
    "template",
    row="""any row, written by your own texts: `template: {prompt: "{{ question }}", completion: "{{ reply }}"}`; with \
`other_prompts` each row draws one""",
    columns=Columns(),
    parse=parse_template,
    options=(Option("template", needed="`template: {prompt: ..., completion: ...}`"),),
    makes="either",
)

"""Templates stay within their limits."""

import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from data_prep.chat.chat_templates import TEMPLATES
from data_prep.chat.rendering import render
from data_prep.errors import DataError
from data_prep.jinja import limits, sandbox
from data_prep.jinja.sandbox import chat_sandbox, render_limited, row_sandbox
from data_prep.messages import Conversation, Message
from data_prep.tokenizers.tokenizer import load_tokenizer

DOUBLING = (
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s OPERATOR n.s %}{% endfor %}{{ "
    "n.s | length }}"
)
EXPLODING = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    DOUBLING.replace("OPERATOR", "~"),
    DOUBLING.replace("OPERATOR", "+"),
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x' * 10**10 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "{{ ['a' * 99999] * 99999 | join }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ lipsum(n=10**8) }}",
    "{{ 2 ** (10**9) }}",
    "{{ (['x' * 900000] * 250) | urlencode }}",
    "{{ ('a\n' * 50000) | indent(width='x' * 50000) | length }}",
    "{{ ('a ' * 10000) | wordwrap(1, wrapstring='x' * 900000) | length }}",
    "{{ ('http://a.bc ' * 10000) | urlize(target='x' * 900000) | length }}",
    "{{ ('a' * 10000) | replace(new='b' * 99999, old='a') | length }}",
    "{{ (['y' * 900000] * 250) | reject('none') | join | length }}",
    "{{ ([1] * 10000) | tojson(indent=900000) | length }}",
    "{{ {'x' * 900000: [11] * 10000} | pprint | length }}",
    "{{ range(100000) | map('string') | map('center', 500000) | list | length }}",
    "{{ range(100000) | map('batch', 1000000, 0) | map('list') | list | length }}",
    "{{ [1] | slice(1000000) | list | length }}",
    "{{ ([[1]] * 30000) | sum(start=[]) | length }}",
    "{{ ([{'a': [1]}] * 30000) | sum('a', []) | length }}",
    "{{ ('x' * 900000).join((['y' * 900000] * 250) | reject('none')) | length }}",
    "{{ ('x'.encode() * 10**9) | length }}",
    "{{ ('\t' * 1000).expandtabs(1000000) | length }}",
    "{{ ('a' * 1000).translate({97: 'x' * 900000}) | length }}",
    "{{ '{:{}}'.format(1, '9999999999') }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ ('%(a)s' * 1000) % {'a': 'x' * 900000} }}",
    "{{ ('{0.a}' * 1000).format(namespace(a='x' * 900000)) }}",
    "{% set n = namespace(l=[]) %}{% set b = 'x' * 900000 %}{% for i in range(999) %}{% set n.l = n.l + "
    "[b[i:]] %}{% endfor %}",
    "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}",
    "{% set n = namespace(l=[]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}",
    "{% set n = namespace(l={}) %}{% for i in range(60) %}{% set n.l = dict(a=n.l, b=n.l) %}{% endfor %}",
    "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}",
    "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
    "{% set b = 'x' * 900000 %}{% set t %}{% for i in range(99999) %}{{ b }}{% endfor %}{% endset %}",
    "{% set t %}{% for i in range(99999) %}" + "x" * 99999 + "{% endfor %}{% endset %}",
    "{% macro f() %}"
    + "x" * 99999
    + "{% endmacro %}{% set t %}{% for i in range(99999) %}{{ f() }}{% endfor %}{% endset %}",
]
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
]


@pytest.mark.parametrize("template", EXPLODING)
@pytest.mark.parametrize("make", [chat_sandbox, row_sandbox])
def test_an_exploding_template_is_stopped(template: str, make: Any) -> None:
    """What would fill the memory is refused, before it does and before the time of a rendering is over."""
    make()
    started = time.monotonic()
    with pytest.raises(TemplateError):
        render_limited(make(), template, {}, 0)
    assert time.monotonic() - started < 2 * sandbox.SECONDS + 2  # a loaded machine takes its time


def test_an_endless_template_is_tried_once(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is not given again for each form in which a template may take its messages."""
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    path = tmp_path / "endless.jinja"
    path.write_text("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    tokenizer = load_tokenizer(tiny_base, chat_template=str(path))
    begun: list[int] = []
    begin = sandbox.LimitedSandbox.begin
    monkeypatch.setattr(
        sandbox.LimitedSandbox, "begin", lambda self, size: (begun.append(size), begin(self, size))[1]
    )
    with pytest.raises(DataError, match="it takes longer than"):
        render([Message("user", "hi")], tokenizer)
    assert len(begun) <= 2  # compiled once, run once


@pytest.mark.parametrize("template", ENDLESS)
def test_an_endless_template_is_stopped(
    template: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template that loops without end and writes nothing ends in a DataError when its time is over."""
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    path = tmp_path / "endless.jinja"
    path.write_text(template)
    started = time.monotonic()
    with pytest.raises(
        DataError, match=r"endless.jinja\) fails on this conversation: it takes longer than 0.2 seconds"
    ):
        render([Message("user", "hi")], load_tokenizer(tiny_base, chat_template=str(path)))
    assert time.monotonic() - started < 2 * sandbox.SECONDS + 2  # a loaded machine takes its time


@pytest.mark.parametrize("make", [chat_sandbox, row_sandbox])
def test_much_work_is_no_explosion(make: Any) -> None:
    """A template may put a long conversation together turn by turn, as a text or as a list, and write large
    numbers."""
    template = (
        "{% set n = namespace(t='', u='', l=[]) %}{% for m in messages %}{% set n.t = n.t + m.role + "
        "m.content %}{% set n.u = n.u ~ m.role ~ m.content %}{% set n.l = n.l + [m] %}{{ "
        "messages[loop.index0:] | length }} {% endfor %}{{ n.t == n.u and n.l == messages }} {{ '{:,} "
        "%d'.format(n.t | length) % 5000000 }} {{ 5000000 | string }}"
    )
    messages = [{"role": "user", "content": "x" * 400}] * 1000
    text = render_limited(make(), template, {"messages": messages}, 400_000)
    assert text.endswith(" 2 1 True 404,000 5000000 5000000")


@pytest.mark.parametrize("make", [chat_sandbox, row_sandbox])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ '\\ud800' }}", "half of a surrogate pair"),
        ("{{ '%c' % 55296 }}", "half of a surrogate pair"),
        ("{{ [1, 2] | random }}", "random is not repeatable"),
        ("{{ [[1, 2]] | map('random') | list }}", "random is not repeatable"),
        ("{{ lipsum() }}", "lipsum is not repeatable"),
        ("{{ [1, 2] | map('string') }}", "writes a generator, which has no text"),
        ("{{ cycler() }}", "at least one item"),
        ("{{ " + "-" * 5000 + "1 }}", "nested too deeply"),
    ],
)
def test_what_is_no_text_is_refused(template: str, said: str, make: Any) -> None:
    """What can't be written, or not the same each time, is jinja2's TemplateError with the reason."""
    with pytest.raises(TemplateError, match=said):
        render_limited(make(), template, {}, 0)


@pytest.mark.parametrize(
    "template",
    ["{{ n }}", "a {{ row.n }} b", "{% for x in [n] %}{{ x }}{% endfor %}", "{{ None }}", "{{ 'a' ~ n }}"],
)
def test_a_row_s_null_is_not_the_word_none(template: str) -> None:
    """What is null in a row can be asked for, or written as something else, and never as "None"."""
    values = {"n": None, "row": {"n": None}}
    with pytest.raises(TemplateError, match="null here"):
        render_limited(row_sandbox(), template, values, 0)
    assert (
        render_limited(row_sandbox(), "{{ n or '' }}{% if n is none %}x{% endif %}{{ 0 }}", values, 0) == "x0"
    )


def test_an_interrupt_is_no_error_of_the_template() -> None:
    """Ctrl+C during a rendering stays what it is."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_limited(row_sandbox(), "{{ f() }}", {"f": interrupt}, 0)


def test_every_filter_is_known_to_the_limits() -> None:
    """Each filter that a limit is written for is one of the sandbox's: a new name in jinja2 would leave it
    without."""
    assert set(limits.CHECKS) <= set(chat_sandbox().filters)


def test_large_rows_are_no_explosion(tiny_base: Path) -> None:
    """A row of 10 MB is rendered: the limit grows with what goes in."""
    tokenizer = load_tokenizer(tiny_base)
    text = render([Message("user", "x" * 10_000_000), Message("assistant", "y")], tokenizer)
    assert len(text) > 10_000_000


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_the_text_is_that_of_transformers(
    name: str, add_generation_prompt: bool, llama_folder: Path, conversation: Conversation
) -> None:
    """Within the limits, the text is the one that apply_chat_template of transformers writes."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    turns = [{"role": message.role, "content": message.content} for message in conversation.messages]
    expected = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert render(conversation.messages, tokenizer, add_generation_prompt=add_generation_prompt) == expected

"""Templates stay within their limits."""

import time
from pathlib import Path
from typing import Any

import pytest

from data_prep import sandbox
from data_prep.chat_templates import TEMPLATES
from data_prep.errors import DataError
from data_prep.messages import Conversation, Message
from data_prep.render import render
from data_prep.sandbox import LimitExceeded, chat_sandbox, render_limited, row_sandbox
from data_prep.tokenizer import load_tokenizer

DOUBLING = (
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s OPERATOR n.s %}{% endfor %}{{ n.s | length }}"
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
]
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
]


@pytest.mark.parametrize("template", EXPLODING)
@pytest.mark.parametrize("make", [chat_sandbox, row_sandbox])
def test_an_exploding_template_is_stopped(template: str, make: Any) -> None:
    """What would fill the memory is refused within two seconds, before it does."""
    make()
    started = time.monotonic()
    with pytest.raises((LimitExceeded, OverflowError, TypeError)):
        render_limited(make(), template, {}, 0)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("template", ENDLESS)
def test_an_endless_template_is_stopped(
    template: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template that loops without end and writes nothing ends in a DataError when its time is over."""
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    path = tmp_path / "endless.jinja"
    path.write_text(template)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"endless.jinja\) fails on this conversation: it takes longer than 0.2 seconds"):
        render([Message("user", "hi")], load_tokenizer(tiny_base, chat_template=str(path)))
    assert time.monotonic() - started < 2


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
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert render(conversation.messages, tokenizer, add_generation_prompt=add_generation_prompt) == expected

"""Templates of rows and chat templates that fail, reach for Python, loop or explode."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import CHATML
from tests.unit.data_prep.bad_input.outcomes import (
    LONGEST_MESSAGE,
    MESSAGES,
    bad_rows,
    error,
    jsonl,
    lines_of,
    prepared,
    refusal,
)

ROOT = Path(__file__).resolve().parents[4]


def template_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, prompt: str, *, chat: bool = True
) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": "b"}))
    return error(path, tokenizer, "template", template={"prompt": prompt, "completion": "c", "chat": chat})


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ a['__class__']['__base__'] }}",
    "{{ a | attr('__class__') }}",
    "{{ a | map(attribute='__class__') | join }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ '{0.__class__}'.format(a) }}",
    "{{ '{a.__class__}'.format_map({'a': a}) }}",
    "{{ range.__self__ }}",
    "{{ (a ~ '').__class__ }}",
    "{% for x in [a] %}{{ loop.__class__ }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ import_module('os') }}",
    "{{ __import__('os') }}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_a_template_stays_in_its_sandbox(
    text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A row's template that reaches for Python is one DataError with the row and the text of the recipe that
    does it."""
    assert re.match(
        r"rows\.jsonl:1, read as format 'template': template\.prompt\b",
        template_error(tmp_path, tokenizer, text),
    )


@pytest.mark.parametrize("text", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(text: str, tmp_path: Path, tiny_base: Path) -> None:
    """A chat template that reaches for Python gets nothing: one DataError with the row and its name, or no
    text at all."""
    (tmp_path / "own.jinja").write_text("{% set a = 'a' %}" + text + CHATML)
    (tmp_path / "rows.jsonl").write_bytes(jsonl(MESSAGES))
    own = load_tokenizer(tiny_base, chat_template=str(tmp_path / "own.jinja"))
    said = refusal(tmp_path / "rows.jsonl", own, "messages")
    if said is None:
        (document,) = prepared(tmp_path / "rows.jsonl", own, "messages").train
        assert own.decode(document.token_ids).startswith("<|im_start|>user\nhi<|im_end|>")
    else:
        assert re.match(
            r"rows\.jsonl:1: the chat template \(.*own\.jinja\) fails on this conversation: ", said
        ), said


FAILING_ON_ROWS = [
    "{{ b }}",
    "{{ [b] }}",
    "{{ {'x': b} }}",
    "{{ a.b.c }}",
    "{{ 1 / 0 }}",
    "{{ a + 1 }}",
    "{{ a | nosuch }}",
    "{{ a is nosuch }}",
    "{% if a %}",
    "{{ a",
    "{{ a[::0] }}",
]
"""Texts that fail on a row that has the column a, and no column b."""

FAILING = [
    "{{ 'x' | filesizeformat }}",
    "{{ 1e308 * 10 | int }}{{ (1e308 * 10) | int }}",
    "{{ a.encode('nosuch') }}",
    "{{ 3() }}",
    "{% for x, y in [1] %}{% endfor %}",
    "{% for x in [a] recursive %}{{ loop([a]) }}{% endfor %}",
    "{% set range.x = 1 %}",
    "{{ cycler() }}",
    "{{ a | truncate(1) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "{{ '\\ud800' }}",
    "{{ '%c' % 55296 }}",
]
"""Templates that fail on anything: types, numbers, nesting, halves of characters."""


@pytest.mark.parametrize("text", FAILING_ON_ROWS + FAILING, ids=lambda text: text[:40])
@pytest.mark.parametrize("chat", [True, False])
def test_a_template_that_fails(
    chat: bool, text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A row's template that fails, in whatever way, is one short DataError that begins with the row's
    place."""
    said = template_error(tmp_path, tokenizer, text, chat=chat)
    assert said.startswith("rows.jsonl:1")
    assert len(said) < LONGEST_MESSAGE


@pytest.mark.parametrize("text", FAILING, ids=lambda text: text[:40])
def test_a_chat_template_that_fails(text: str, tmp_path: Path, tiny_base: Path) -> None:
    """A chat template that fails, in whatever way, is one short DataError with the template's name."""
    (tmp_path / "own.jinja").write_text("{% set a = 'a' %}" + text + CHATML)
    (tmp_path / "rows.jsonl").write_bytes(jsonl(MESSAGES))

    def use() -> None:
        prepared(
            tmp_path / "rows.jsonl",
            load_tokenizer(tiny_base, chat_template=str(tmp_path / "own.jinja")),
            "messages",
        )

    with pytest.raises(DataError, match=r"own\.jinja") as caught:
        use()
    assert len(str(caught.value)) < LONGEST_MESSAGE


def test_a_template_that_loops(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's template that doesn't end is stopped by the clock, and the error names the row and the text."""
    from data_prep.jinja import sandbox

    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    text = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    said = template_error(tmp_path, tokenizer, text)
    assert said.startswith(
        "rows.jsonl:1, read as format 'template': template.prompt fails on this row: it takes longer than"
    )


def test_one_row_of_many_breaks_its_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A template that fails on one row alone is that row's problem: with on_bad_row skip the others are
    kept."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        jsonl({"a": "b", "n": 2}, {"a": "b", "n": 0}, {"a": "b", "n": "x"}, {"a": "b"}, {"a": "b", "n": 4})
    )
    template = {"prompt": "{{ 8 / n }}", "completion": "{{ a }}"}
    skipped = bad_rows(path, tokenizer, "template", kept=2, template=template)
    assert lines_of(skipped) == [2, 3, 4]


INSIDE_ONE_CALL = [
    "{{ ['x' * 900000] * 250 }}",
    "{{ (['x' * 900000] * 250) | string | length }}",
    "{{ (['x' * 900000] * 250) | tojson | length }}",
    "{{ (['x' * 900000] * 250) | pprint | length }}",
    "{{ '{}'.format(['x' * 900000] * 250) | length }}",
    "{{ ('a\n' * 5000) | indent(50000) | length }}",
    "{{ ('a' * 500) | map('center', 500000) | list | length }}",
    "{{ ([[1] * 50000] * 150) | sum(start=[]) | length }}",
    "{% set n = namespace(l=[]) %}{% for i in range(250) %}{% set n.l = n.l + ['x' * 900000] %}{% endfor %}",
]
"""What makes 200 MB out of nothing, inside one call or piece by piece, where no piece is too long by
itself."""


def test_a_template_that_explodes_inside_one_call() -> None:
    """Texts and lists that grow huge inside one call, or in many pieces, are refused before they take 150
    MB."""
    code = (
        "import resource\nfrom data_prep.jinja.sandbox import LimitExceeded, render_limited, row_sandbox\n"
        "render_limited(row_sandbox(), 'x', {}, 0)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        f"allowed, start = [], peak()\nfor text in {INSIDE_ONE_CALL!r}:\n"
        "    try:\n        render_limited(row_sandbox(), text, {}, 0)\n        allowed.append(text)\n"
        "    except LimitExceeded:\n        pass\n"
        "print((allowed, peak() - start))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    allowed, grown_megabytes = ast.literal_eval(done.stdout)
    assert allowed == []
    assert grown_megabytes < 150


def test_templates_share_nothing_between_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a template does to one row's values or to names of its own is gone in the next row."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": ["b"]}, {"a": ["c"]}))
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*template\.prompt fails on this row: .*append"):
        prepared(path, tokenizer, "template", template={"prompt": "{{ a.append('x') }}", "completion": "c"})
    prompt = "{% if x is not defined %}new{% endif %}{% set x = 1 %}{% set range = 2 %}"
    data = prepared(path, tokenizer, "template", template={"prompt": prompt, "completion": "c"})
    assert [tokenizer.decode(document.token_ids).count("new") for document in data.train] == [1, 1]


@pytest.mark.parametrize(
    "text", ["{{ range(10**4) | random }}", "{{ lipsum(n=1, html=false, min=5, max=9) }}"]
)
def test_templates_draw_nothing(text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a row's template writes is the same each time, or refused: nothing in it is drawn by chance."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": "b"}))
    template = {"template": {"prompt": text, "completion": "c"}}
    if refusal(path, tokenizer, "template", **template) is None:
        first, second = (prepared(path, tokenizer, "template", **template).train[0] for _ in range(2))
        assert first.token_ids == second.token_ids

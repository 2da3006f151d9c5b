"""Chat templates that fail, never end, write too much, or do what no template should."""

from random import Random

from tests.support.models import CHATML

PIECES = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(messages[0].role) }}",
    "{% call(x) m() %}{% endcall %}",
    "{{ 'x' * 10**9 }}", "{{ 'x' * 300000 }}", "{{ 'x' | center(10**9) }}", "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) "
    "}}", "{{ messages | tojson(indent=10**7) }}", "{{ range(10**9) | list | length }}",
    "{{ [[0] * 1000] * 1000000 }}",
    "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ 9 ** 9 ** 9 }}", "{{ 1 / 0 }}", "{{ (1).__class__ }}", "{{ 'a'.join(1) }}", "{{ 'a'.encode('rot13') }}",
    "{{ undefined_name }}", "{{ undefined_name.key }}", "{{ messages[99].content }}", "{{ messages[0].nope.nope }}",
    "{{ none() }}",
    "{{ messages['x'] }}", "{{ messages.content }}", "{{ tools[0].name }}", "{{ bos_token + 1 }}", "{{ unk_token.x }}",
    "{{ raise_exception('no') "
    "}}", "{{ raise_exception('x' * 50000) }}", "{{ raise_exception(5) }}", "{{ raise_exception() }}",
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system message must come first') }}{% endif "
    "%}",
    "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}",
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.system('x') }}", "{{ self.__init__ }}",
    "{{ messages.append(1) }}",
    "{{ lipsum() }}", "{{ messages | random }}", "{{ messages | nope }}", "{{ messages is nope }}",
    "{{ messages | groupby('role') }}",
    "{{ messages | map(attribute='content') | join "
    "}}", "{{ messages | map('upper') | list }}", "{{ {1: 2} | xmlattr }}",
    "{{ messages | pprint }}", "{{ messages | batch(0) | list }}", "{{ messages | slice(0) | list }}",
    "{{ 'x' | indent(10**9) }}",
    "{{ 'a' | wordwrap(0) "
    "}}", "{{ messages | sort(attribute='nope') }}", "{{ messages | sum }}", "{{ 'x' | int(base=99) }}",
    "{{ strftime_now('%Y') "
    "}}", "{{ strftime_now(5) }}", "{{ strftime_now() }}", "{{ '\\ud800' }}", "{{ '\\0' }}", "\0",
    "\ufeff", "\u2028",
    "{% generation %}x{% endgeneration "
    "%}", "{% break %}", "{% for m in messages %}{% continue %}{% endfor %}",
    "{% do messages %}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% block b %}{% endblock %}",
    "{% raw %}{{ x }}{% endraw %}",
    "{% autoescape true %}{{ messages[0].content }}{% endautoescape "
    "%}", "{% set messages = [] %}", "{% set bos_token = 1 %}",
    "{% for m in messages recursive %}{{ loop([m]) }}{% endfor "
    "%}", "{{ loop }}", "{{ messages }}", "{{ messages[0] }}",
    "{{ caller() }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter "
    "%}", "{% trans %}x{% endtrans %}", "{% debug %}", "{{ debug() }}",
    "{% if %}", "{% endif %}", "{% for %}", "{{", "}}", "{%", "{#", "{{ 'x }}", "{% if x %}", "{% macro %}", "{% nope %}",
    "{{ x | }}",
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "{{ " + "[" * 3000 + " }}", "{{ " + " ~ ".join(["'a'"] * 3000) + " }}",
    "{% if 1 %}" * 150 + "{% endif %}" * 150, "{{ " + "not " * 5000 + "1 }}", "x" * 200_000, "{{ 1" + "0" * 6000 + " }}",
]  # fmt: skip


def template(random: Random, base: str = CHATML) -> str:
    """A template; most of them around one that works."""
    piece = random.choice(PIECES)
    place = random.choice([0, len(base), random.randrange(len(base))])
    match random.choices(["piece", "beside", "torn", "loop", "twice", "none"], [15, 40, 20, 15, 5, 5])[0]:
        case "piece":
            return piece
        case "beside":
            return base[:place] + piece + base[place:]
        case "torn":
            return base[:place] + base[place + random.choice([1, 1, 2, 20]) :]
        case "loop":
            role = random.choice(["system", "user", "assistant", "tool"])
            return (
                "{% for m in messages %}{% if m.role == '"
                + role
                + "' %}"
                + piece
                + "{% endif %}{% endfor %}"
                + base
            )
        case "twice":
            return base + base
        case _:
            return random.choice(
                [
                    "",
                    " ",
                    "x",
                    "{{ messages[-1].content }}",
                    "{{ messages[0].content }}",
                    "{% for m in messages %}{% endfor %}",
                ]
            )

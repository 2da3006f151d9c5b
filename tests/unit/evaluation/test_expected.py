"""What tests compare with is kept from the program that is tested: real processes throughout."""

import pytest

from finetune.evaluation.sandbox.runner import run_program, why_no_sandbox
from tests.unit.evaluation.programs import PASSED, SECONDS, each, reason_of

pytestmark = pytest.mark.skipif(why_no_sandbox() is not None, reason=f"no sandbox here: {why_no_sandbox()}")

WRONG = "def add(a, b):\n    return 0\n\n"
TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4"
UNTRUE = {
    "an object that equals "
    "all": "class Any:\n    def __eq__(self, other): return True\nadd = lambda a, b: Any()\n" + TESTS,
    "a number that equals all": """
class Any(int):
    def __eq__(self, other): return True
add = lambda a, b: Any(0)
"""
    + TESTS,
    "another table": f"""
{WRONG}class Any:
    def __getitem__(self, number): return self
    def __eq__(self, other): return True
__expected__ = Any()
{TESTS}""",
    "all answers tried": f"""
{WRONG}for number in range(2):
    for guess in range(10):
        if __expected__[number] == guess: break
{TESTS}""",
    "failures caught": f"{WRONG}try:\n    assert __expected__[0] == 0\nexcept AssertionError: pass\n{TESTS}",
    "a test replaced": f"""
{WRONG}def check(f):
    assert f(1, 2) == 3
check = lambda f: None
check(add)
""",
    "tests returned from": """
def check(f):
    assert f(1, 2) == 3
    assert f(2, 2) == 4
class Done(Exception): pass
def add(a, b):
    raise Done
try:
    check(add)
except Done:
    pass
check(lambda a, b: {(1, 2): 3}[a, b])
""",
    "asked by the channel": f"""
import os
{WRONG}for descriptor in range(3, 64):
    try:
        os.write(descriptor, b"?0 n3/1.\\n?1 n4/1.\\n" + b"0" * 32 + b"\\n")
    except OSError:
        pass
os._exit(0)
""",
}


@each(UNTRUE)
def test_an_answer_that_is_not_known_passes_nothing(program: str) -> None:
    """Neither by equality of its own making, nor by trying values, leaving comparisons out or speaking for
    itself."""
    reason_of(program)


def test_the_expected_value_is_nowhere_in_the_process() -> None:
    """Not in the program's text, its constants, or what the frames below hold."""
    program = """
import sys
def secret(x):
    frame, texts = sys._getframe(1), []
    while frame:
        texts += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        frame = frame.f_back
    assert "four" + "teen" not in repr(texts), texts
    return "four" + "teen"
assert secret(1) == "fourteen"
"""
    assert run_program(program, seconds=SECONDS) == PASSED


LITERALS = [
    "3", "-3", "0", str(2**70), "1.5", "-0.0", "1e300", "1e999", "2j", "(1+2j)", "True", "None", "...", "''",
    "'\u00e9\\n\U0001f600'", "'a' 'b'", "b'\\x00a'", "[]", "()", "(1,)", "[1, [2, (3,)]]", "{}",
    "{1: 'a', 'b': [2]}", "{1, 2, 'a'}", "set()", "{(1, 2): {3}}", "[\n    1,\n    2,\n]", "'''a\nb'''",
]  # fmt: skip


@pytest.mark.parametrize("literal", LITERALS)
def test_a_literal_equals_what_it_says(literal: str) -> None:
    """Of every kind and over several lines, on either side; and nothing else."""
    program = f"value = (\n{literal})\nassert value == (\n{literal})\nassert {literal} == value"
    assert run_program(program, seconds=SECONDS) == PASSED
    reason = reason_of(f"value = object()\nassert value == {literal}")
    assert reason.startswith("assertion failed: assert value == ")
    assert reason.endswith("(line 2)")


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("1", "True"), ("2.0", "2"), ("Fraction(1, 2)", "0.5"), ("Decimal('0.25')", "0.25"), ("complex(3, 0)", "3"),
        ("0", "-0.0"), ("bytearray(b'a')", "b'a'"), ("OrderedDict(a=1, b=2)", "{'b': 2, 'a': 1}"), ("[1.0, True]", "[1, 1]"),
        ("Counter('aab')", "{'a': 2, 'b': 1}"), ("frozenset([1])", "{1}"), ("{1: 2}.keys()", "{1}"),
        ("namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
        ("MappingProxyType({1: 2})", "{1: 2}"), ("Colour.RED", "1"), ("float('inf')", "1e999"), ("Decimal('inf')", "1e999"),
    ],
)  # fmt: skip
def test_values_of_other_types_equal_as_python_says(value: str, literal: str) -> None:
    """The same verdict as Python's own comparison, which the program makes first."""
    imports = """
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from types import MappingProxyType
class Colour(IntEnum):
    RED = 1
"""
    assert (
        run_program(
            f"{imports}x = {value}\ny = {literal}\nassert x == y\nassert x == {literal}", seconds=SECONDS
        )
        == PASSED
    )


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("[1]", "(1,)"), ("(1, 2)", "[1, 2]"), ("'1'", "1"), ("b'a'", "'a'"), ("range(2)", "[0, 1]"), ("[{}]", "[set()]"),
        ("float('nan')", "1.0"), ("0.1 + 0.2", "0.3"), ("iter([1])", "[1]"), ("{1: 2}", "{1: 3}"), ("2 ** 64", "2 ** 64 + 1"),
        ("[0] * 10 ** 6", "[0]"), ("None", "0"), ("''", "None"), ("deque([1])", "[1]"), ("Plain(1)", "1"),
    ],
)  # fmt: skip
def test_values_that_differ_fail(value: str, literal: str) -> None:
    """As in Python; a type, a digit or a length is enough."""
    imports = "from collections import deque\nclass Plain:\n    def __init__(self, x): self.x = x\n"
    assert reason_of(f"{imports}x = {value}\nassert x == {literal}").startswith(
        "assertion failed: assert x == "
    )


def test_a_class_of_the_programs_own_compares_as_it_says() -> None:
    """Where its equality comes down to values."""
    program = """
class Money:
    def __init__(self, amount): self.amount = amount
    def __eq__(self, other): return self.amount == other
assert Money(3) == 3
"""
    assert run_program(program, seconds=SECONDS) == PASSED


def test_only_what_every_run_compares_is_asked_for() -> None:
    """Assertions in branches, loops, functions that are not called and behind a return may or may not be
    made."""
    program = """
def check(f, full=False):
    assert f(1) == 2
    for n in range(10_000):
        assert f(0) == 1
    if not full:
        return
    assert f(2) == 0

def unused():
    assert 1 == 2

def later():
    assert 1 == 2
    yield

check(lambda x: x + 1)
later()
if False:
    assert 1 == 2
try:
    assert len("a") == 2
except AssertionError:
    pass
"""
    assert run_program(program, seconds=SECONDS) == PASSED


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_keep_their_numbers(end: str) -> None:
    """With any line ends, and with literals over several lines."""
    program = (
        "\ufeffassert 1 == 1\nx = '\u00e9'; assert x == '\u00e9'\nassert [x] == [\n    '\u00e9',\n]\nassert "
        "x == 'e'"
    )
    assert reason_of(program.replace("\n", end)) == "assertion failed: assert x == 'e' (line 6)"

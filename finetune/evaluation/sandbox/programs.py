"""Generated code: taken out of an answer, put before its tests, and run in the sandbox."""

import ast
import re
from collections.abc import Sequence

from finetune.evaluation.sandbox.runner import run_programs
from finetune.scoring.measured import Prediction, Verdict, without_thought

FENCED = re.compile(r"```[ \t]*+(?:[Pp]ython|py)?[ \t]*+\r?\n(.*?)(?:```|\Z)", re.DOTALL)
"""The first block of code in a text, as Markdown marks it; one that was cut short goes on to the end."""


EXITS = frozenset({"exit", "quit", "sys.exit", "os._exit", "unittest.main"})
"""Calls that end the program wherever they stand; told not to, unittest.main lets failures pass."""


def exit_in(tests: str) -> str | None:
    """A call in a row's tests by which they tell nothing of a program; None where there is none."""
    try:
        calls = [node.func for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # for the sandbox to say
        return None
    return next((name for call in calls if (name := ast.unparse(call)) in EXITS), None)


def code_in(text: str) -> str:
    """The code of an answer: its first fenced block, or all of it."""
    match = FENCED.search(text)
    return match[1] if match else text


def program_of(answer: str, tests: str) -> str:
    """The code of an answer, and its tests behind it; empty where the answer has no code."""
    code = code_in(answer)
    if not code.strip():
        return ""
    # Code that is none by itself fails as such: a string left open, a decorator or a backslash would take the
    # tests in.
    return f"{code}\n\n{tests}\n" if _is_python(code) else code


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    except (RecursionError, MemoryError):  # for the sandbox to say
        pass
    return True


def run_answers(answers: Sequence[Prediction], *, seconds: float) -> list[tuple[Verdict, ...]]:
    """What became of each program of each answer."""
    programs = [
        program_of(without_thought(text), answer.question.tests)
        for answer in answers
        for text in answer.texts
    ]
    verdicts = iter(run_programs(programs, seconds=seconds))
    return [tuple(next(verdicts) for _ in answer.texts) for answer in answers]

"""Programming tasks, the code that solves them and their tests, as in MBPP
(https://arxiv.org/abs/2108.07732)."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions, ask
from data_prep.formats.columns import a_json_type, as_text, optional_text_column, text_column
from data_prep.formats.text_values import as_structure_or_text
from data_prep.messages import Conversation

FENCE = "```"
"""Encloses code in an answer, as in Markdown."""


def parse_code(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """A programming task and the code that solves it; the tests are part of the question."""
    task, code = text_column(values, "task"), text_column(values, "code").replace("\r\n", "\n").strip("\n")
    tests = values.get("test_list") or []
    if isinstance(tests, str):
        tests = [tests]
    if not isinstance(tests, list):
        raise ValueError(f"test_list is {a_json_type(tests)}; a text or a list of texts was expected")
    lines = [as_text(test, f"test_list[{index}]") for index, test in enumerate(tests)]
    setup = optional_text_column(values, "test_setup_code") or ""
    shown_tests = "\n\nIt has to pass these tests:\n\n" + "\n".join(lines) if lines else ""
    question = f"{task}{shown_tests}"
    program = "\n".join([*([setup] if setup else []), *lines]) if lines else ""
    return [ask(question, f"{FENCE}python\n{code}\n{FENCE}", tests=program)]


FORMAT = Format(
    "code",
    row="""`{"task": ..., "code": ..., "test_list": [...]}`""",
    columns=Columns((("task", "code"),), ("test_list", "test_setup_code")),
    parse=parse_code,
    readers={"test_list": as_structure_or_text},
)

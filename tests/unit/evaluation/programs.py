"""Generated programs for tests: run in the sandbox, and why one fails."""

from collections.abc import Mapping

import pytest

from finetune.evaluation.sandbox.runner import run_program
from finetune.scoring.measured import Verdict

PASSED = Verdict(True, "")
SECONDS = 20.0
"""For programs that end by themselves, so that a busy machine fails no test."""


def each(programs: Mapping[str, str]) -> pytest.MarkDecorator:
    """A test for each program, by its name."""
    return pytest.mark.parametrize("program", list(programs.values()), ids=list(programs))


def reason_of(program: str, *, seconds: float = SECONDS, memory_bytes: int = 512 * 2**20) -> str:
    """Why the program failed; it must fail."""
    verdict = run_program(program, seconds=seconds, memory_bytes=memory_bytes)
    assert not verdict.passed
    assert verdict.reason
    return verdict.reason

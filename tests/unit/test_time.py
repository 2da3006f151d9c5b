"""How long nasty texts take: in proportion to their length."""

import time

import pytest

from benchmarks.nasty_texts import FUNCTIONS, texts

TEXTS = texts(100_000)
MOST_SECONDS = 3.0
"""About a hundred times what the slowest takes, so that a busy machine fails no test; what is quadratic takes
longer still."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_text_takes_the_square_of_its_length(name: str) -> None:
    """100 kB of each are scrubbed, cleaned, searched and normalised at once; benchmarks/bench_texts.py takes
    a megabyte."""
    for kind, text in TEXTS.items():
        started = time.perf_counter()
        FUNCTIONS[name](text)
        assert time.perf_counter() - started < MOST_SECONDS, kind

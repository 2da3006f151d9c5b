"""Names of ModelScope, from which nothing is downloaded, and the Hugging Face hub's way to say them."""

import re

FORM = re.compile(
    r"(?P<mark>(?i:ms::?(//)?)|(?i:https?://)?(www\.)?modelscope\.(cn|ai|com)/(datasets/|models/)?)?"
    r"(?P<name>[^/#:?\s]+/[^/#:?\s]+)[^#\s]*(#(?P<rows>\d+))?"
)
OWNERS = frozenset({"AI-ModelScope", "LLM-Research"})
"""Owners on ModelScope of copies of others' models and data sets."""
ON_THE_HUB = {
    "swift/self-cognition": "modelscope/self-cognition",
    "AI-ModelScope/alpaca-gpt4-data-en": "vicgalle/alpaca-gpt4",
    "AI-ModelScope/alpaca-gpt4-data-zh": "llm-wizard/alpaca-gpt4-data-zh",
    "LLM-Research/Meta-Llama-3-8B-Instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "LLM-Research/Meta-Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "LLM-Research/Llama-3.2-1B-Instruct": "meta-llama/Llama-3.2-1B-Instruct",
    "LLM-Research/Llama-3.2-3B-Instruct": "meta-llama/Llama-3.2-3B-Instruct",
}
"""Copies by the names of their originals."""


def problem_with_name(text: str) -> str | None:
    """Why a name of a model or data set is refused: it is ModelScope's, or has a number of rows behind it;
    None otherwise."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        return None
    name, rows = found["name"], found["rows"]
    own = ON_THE_HUB.get(name)
    taken = f"; #{rows} is sample_rows: {rows}" if rows else ""
    if found["mark"] or own or name.partition("/")[0] in OWNERS:
        there = f"it is {own} there" if own else f"look for {name}, or what it is a copy of, there"
        return (
            f"got {text!r}, a name of ModelScope; names here are those of the Hugging Face hub (owner/name): "
            f"{there}, or give the path of a copy on this machine{taken}"
        )
    return f"got {text!r}, expected the name alone, {name}{taken}" if rows else None

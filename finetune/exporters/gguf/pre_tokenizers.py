"""How a byte-level tokenizer splits a text before it merges, and llama.cpp's name for that
(tokenizer.ggml.pre).

llama.cpp has each way under a name; which of them a tokenizer.json describes is told by its steps.
"""

import json
from typing import Any

from data_prep.text import shown
from finetune.errors import ExportError

Step = tuple[str, Any]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UP_TO_3_DIGITS = "|".join([CONTRACTIONS, WORDS, r"\p{N}{1,3}", REST])
"""LLaMA 3's, which is that of cl100k too."""
SINGLE_DIGITS = "|".join([CONTRACTIONS, WORDS, r"\p{N}", REST])
"""Qwen 2's."""
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BY_CASE = "|".join([
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*", r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
])  # fmt: skip
"""Mistral Nemo's (Tekken)."""
BY_CASE_CONTRACTED = "|".join([
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?", r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
])  # fmt: skip
"""That of GPT-4o, which Phi-4 mini has."""

BYTES, SPLIT_AND_BYTES = ("ByteLevel", False), ("ByteLevel", True)
"""Bytes alone, and GPT-2's splitting before it."""

KNOWN: dict[tuple[Step, ...], dict[bool, str]] = {
    (SPLIT_AND_BYTES,): {False: "gpt-2"},
    (("Digits", True), SPLIT_AND_BYTES): {False: "smollm"},
    (("Split", UP_TO_3_DIGITS), BYTES): {True: "llama-bpe", False: "dbrx"},
    (("Split", SINGLE_DIGITS), BYTES): {False: "qwen2"},
    (("Split", BY_CASE), BYTES): {True: "tekken"},
    (("Split", BY_CASE_CONTRACTED), BYTES): {False: "gpt-4o"},
}
"""Steps -> whether a word that is a token is taken whole, without merging (ignore_merges) -> llama.cpp's
name."""

MARKS_APART = ("tekken", "gpt-4o")
"""Those that llama.cpp computes without combining marks: it cuts words of Hindi and its like before them."""


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises ExportError for one that it
    hasn't."""
    found = tuple(_steps(tokenizer.get("pre_tokenizer") or {}))
    names = KNOWN.get(found, {})
    whole = bool(tokenizer["model"].get("ignore_merges"))
    if whole not in names:
        raise ExportError(
            "llama.cpp has no pre-tokenizer that is known here to split texts as this tokenizer does "
            f"(pre_tokenizer in tokenizer.json: {shown(json.dumps(tokenizer.get('pre_tokenizer')))}, "
            f"ignore_merges {whole}): in llama.cpp texts would become other tokens, so the model isn't "
            "exported."
        )
    return names[whole]


def _steps(step: dict[str, Any]) -> list[Step]:
    kind = str(step.get("type"))
    if kind == "Sequence":
        return [inner for each in step["pretokenizers"] for inner in _steps(each)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [(kind, step.get("use_regex", True))]
    if kind == "Digits":
        return [(kind, step.get("individual_digits"))]
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return [(kind, step["pattern"].get("Regex"))]
    return [(kind, json.dumps(step, sort_keys=True))]

"""Texts in which tokenizers differ: blanks, digits, line ends, scripts, emoji, special tokens."""

import unicodedata
from itertools import cycle, islice, product
from typing import Any

from finetune.exporters.gguf.pre_tokenizers import MARKS_APART
from finetune.models.bases.tokenizer_files import probe_texts

TEXTS = 200

PARTS = (
    "Hello", "world's", "don't WE'LL", "x_1 = foo(bar[2:3])", "3.14159", "1,234,567", "2026-11-29", "0", "00",
    "12345678901234567890", "#!/bin/sh", "https://example.org/a?b=c&d=%20", '{"key": [1, null]}', "<b>x</b>",
    "Grüße", "naïve façade", "Ελληνικά", "Привет, мир", "שלום", "مرحبا", "हिन्दी", "ไทย", "日本語です。",
    "你好世界", "한국어", "👩\u200d🚀", "🇩🇪", "🙂🙂", "½ ﬁ №", "\u200b", "\u3000", "…", "—",
    "\u00a0", "\ufeff", "CamelCase", "CAPITALS",
    "e^{i\\pi}", "$5.00", "50 %", "a@b.de", "!!!", "?!", "''quoted''", '"', "``code``", "*.py", "~/.bashrc",
)  # fmt: skip
JOINTS = ("", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\t\t", "\r\n", ", ", ".", "-", "    ", "\n    ")


def texts_for(tokenizer: Any, pre_tokenizer: str | None) -> list[str]:
    """TEXTS of them: the probes of tokenizers, with each special token, then parts joined in every way.

    `pre_tokenizer` is llama.cpp's name for how the tokenizer splits; of texts that it is known to split
    otherwise there is none.
    """
    apart = pre_tokenizer in MARKS_APART
    probes = [text for text in probe_texts(tokenizer) if text and not (apart and _has_marks(text))]
    parts = [part for part in PARTS if not (apart and _has_marks(part))]
    joined = (
        f"{before}{first}{joint}{second}"
        for (first, joint), second, before in zip(
            product(parts, JOINTS), cycle(parts[7:] + parts[:7]), cycle(("", "", " ", "\n")), strict=False
        )
    )
    known, step = probes[: TEXTS // 2], len(parts) * len(JOINTS) // TEXTS
    texts = [*known, *islice(joined, 0, None, step)][:TEXTS]
    return [unicodedata.normalize("NFC", text) for text in texts] if _composes(tokenizer) else texts


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(letter).startswith("M") for letter in text)


def _composes(tokenizer: Any) -> bool:
    """Whether the tokenizer composes characters, which llama.cpp leaves to whoever asks it."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and bool(normalizer.normalize_str("e\u0301") == "\u00e9")

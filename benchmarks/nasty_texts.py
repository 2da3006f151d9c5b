"""Texts on which a careless pattern takes the square of the time, and everything that such texts go
through."""

import base64
import random
from collections.abc import Callable

from data_prep.cleaning.clean import normalized
from data_prep.jinja.sandbox import render_limited, row_sandbox
from data_prep.text import clean_for_terminal
from finetune.evaluation.sandbox.canonical import canonical
from finetune.evaluation.sandbox.programs import code_in
from finetune.recipe.secrets import scrubbed


def formatted(text: str) -> str:
    """The text as the pattern of a row template's format."""
    try:
        return render_limited(row_sandbox(), "{{ pattern.format(1) }}", {"pattern": text}, len(text))
    except Exception as error:  # noqa: BLE001 - it is no pattern, as most of these: how long that takes is what counts
        return str(error)


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "secrets": scrubbed,
    "terminal": clean_for_terminal,
    "code": code_in,
    "expected value": canonical,
    "format": formatted,
    "NFC": lambda text: normalized("NFC", text),
    "NFKC": lambda text: normalized("NFKC", text),
}
PIECES = {
    "letters": "a", "DNA": "ACGT", "digits": "1", "dots": ".", "hyphens": "-", "blanks": " ",
    "newlines": "\n", "slashes": "/", "words": "a ", "braces": "{", "braces and colons": "{:", "percent": "%",
    "percent and digits": "%1", "signs": "&<>\"'", "fences": "```", "fences and blanks": "``` ",
    "scheme": "http://", "no scheme": "://", "queries": "://?", "users": "://@", "paths of URLs": "ab:/",
    "paths of URLs, users": "ab:/a:b", "OpenAI, projects": "sk-proj-", "ports": "://a:1",
    "passwords": "://a:b", "open users": "://a:b/", "fragments": "://#=", "URLs": "https://u:p@h/?a=b ",
    "web tokens": "eyJaaaaaaaaaa", "web tokens, hyphens": "eyJaaaaaaaaaa-",
    "web tokens, dots": "-eyJaaaaaaaaaa.", "web tokens, two parts": "eyJaaaaaaaaaaaa.bbbbbbbbbbbb-",
    "OpenAI": "sk-", "OpenAI, long": f"sk-{'a' * 33} ", "Slack": "xoxb-", "GitLab": "glpat-",
    "Google": "AIza", "hub": "hf_a", "C1 strings": "\x9d", "C1 strings and text": "\x9da", "strings": "\x1b]",
    "strings and ends": "\x1b]\x9c", "sequences": "\x9b0", "sequences, no end": "\x1b[", "escapes": "\x1b ",
    "halves": "\ud800", "bidi": "\u202e", "marks": "\u0300\u0316", "composed marks": "\u0f73\u0300",
    "Hangul": "\u1100\u1161",
}  # fmt: skip
ONCE = {
    "C1 string": "\x9d",
    "string": "\x1b]",
    "sequence": "\x9b",
    "fence": "```",
    "URL": "://",
    "query": "://?",
    "field": "{",
}
"""What begins something, before a long text that never ends it."""


def texts(size: int) -> dict[str, str]:
    """About so many bytes of each, in UTF-8."""
    found = {
        name: piece * (size // len(piece.encode("utf-8", "surrogatepass"))) for name, piece in PIECES.items()
    }
    found |= {
        f"{name}, {filling!r}": start + filling * size
        for name, start in ONCE.items()
        for filling in (" ", "0", "a")
    }
    noise = random.Random(0).randbytes(size * 3 // 4)
    return found | {
        "base64": base64.b64encode(noise).decode(),
        "base64 for URLs": base64.urlsafe_b64encode(noise).decode(),
    }

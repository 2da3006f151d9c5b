"""Keep secrets out of everything that a run writes: tokens in the environment, well-known kinds of tokens, URLs with keys.

Values are scrubbed before they are serialised, so that no file's syntax breaks; keys and paths stay as they are.
"""

import os
import re
from typing import Any

SECRET_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 8
"""A shorter value would stand in too many harmless words."""

KNOWN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-(?:proj-)?(?=\w*\d)(?=\w*[A-Z])(?=\w*[a-z])\w{32,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|AKIA[A-Z0-9]{16}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
"""Tokens of Hugging Face, OpenAI, GitHub, AWS, GitLab and Slack, and JSON web tokens."""

URL_PARTS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s@'\"]+@)?(?P<rest>[^\s?#'\"\\]*)(?P<query>[?#][^\s'\"\\]*=[^\s'\"\\]*)?"
)


def scrubbed(text: str) -> str:
    """The text with secrets replaced by what they were: <HF_TOKEN>, <token>, or a URL without its user and its query."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and SECRET_NAME.search(name) and value in text and not os.path.exists(value):
            text = text.replace(value, f"<{name}>")
    return URL_PARTS.sub(_without_keys, KNOWN.sub("<token>", text))


def scrubbed_values(value: Any) -> Any:
    """Nested values with each text in them scrubbed; a path that starts at the root stays as it is, for it must be found."""
    if isinstance(value, dict):
        return {key: scrubbed_values(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed_values(below) for below in value]
    return scrubbed(value) if isinstance(value, str) and not value.startswith("/") else value


def _without_keys(match: re.Match[str]) -> str:
    user = "<user>@" if match["user"] else ""
    query = "?<query>" if match["query"] else ""
    return f"{match['scheme']}{user}{match['rest']}{query}"

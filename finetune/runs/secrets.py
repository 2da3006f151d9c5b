"""Keep secrets out of everything that a run writes: tokens in the environment, well-known kinds of tokens, URLs with keys."""

import os
import re

SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8
"""A shorter value would stand in too many harmless words."""

KNOWN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{16}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
"""Tokens of Hugging Face, OpenAI, GitHub, AWS, GitLab and Slack, and JSON web tokens."""

URL_PARTS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/@'\"]+@)?(?P<rest>[^\s?'\"]*)(?P<query>\?[^\s'\"]+)?"
)


def scrubbed(text: str) -> str:
    """The text with secrets replaced by what they were: [HF_TOKEN], [token], or a URL without its user and its query."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and SECRET_NAME.search(name) and value in text and not os.path.exists(value):
            text = text.replace(value, f"[{name}]")
    return URL_PARTS.sub(_without_keys, KNOWN.sub("[token]", text))


def _without_keys(match: re.Match[str]) -> str:
    user = "[user]@" if match["user"] else ""
    query = "?[query]" if match["query"] else ""
    return f"{match['scheme']}{user}{match['rest']}{query}"

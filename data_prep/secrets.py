"""Finding secrets in texts and replacing them: values of environment variables, well-known kinds of tokens,
URLs with keys.

Standard library only. Everything takes time linear in the text.
"""

import os
import re

SECRET_NAME = re.compile(
    r"((TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)\d*|(^|_)PASS)(_|$)", re.IGNORECASE
)
"""Matches a word that ends so, anywhere in the name: APIKEY, HF_TOKEN_2 and SECRET_VALUE, not
TOKENIZER_NAME."""
SHORTEST = 8
"""A shorter value would be found in too many harmless words."""

KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-(?=\w*\d)(?=\w*[A-Z])(?=\w*[a-z])\w{32,}|sk-ant-[\w-]{20,}|sk-(?:proj|svcacct|admin|or-v1)-[\w-]{40,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|AKIA[A-Z0-9]{16}|AIza[\w-]{35}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|wandb_v1_\w{20,})"
)
"""Tokens of Hugging Face, OpenAI, Anthropic, GitHub, AWS, Google, GitLab, Slack and wandb."""

# Matched only from the beginning of each run of its characters: from every position it would take quadratic
# time.
WEB_TOKEN = re.compile(r"(?<![\w-])(?P<before>(?>[\w-]*?(?=\beyJ[\w-]{10})))[\w-]++\.[\w-]{10,}+\.[\w-]{5,}+")
"""JSON web tokens: three parts, the first of which is `{"` in base64."""

# A path made of a URL has one slash where there were two, and appears in messages about missing files.
URL_USER = re.compile(
    r"(?<=://)(?:[^\s'\"/?#]*@"
    # a password with a slash in it is no port
    r"|[^\s'\"/?#@:]*+:(?!\d*+(?:[/?#\s'\"]|\Z))(?:(?!://)[^\s'\"])*@)"
    r"|(?<=\w\w:/)(?!/)[^\s'\"/?#]*@"
)
URL = re.compile(r"(?:(?<=://)|(?<=\w\w:/))[^\s'\"]*+")
"""From its scheme to its end; it may contain another URL."""


def scrubbed(text: str) -> str:
    """The text with secrets replaced by what they were: <HF_TOKEN>, <token>, or a URL without its user and
    its query."""
    for name, value in _variables_in(text):
        text = text.replace(value, f"<{name}>")
    if "eyJ" in text:
        text = WEB_TOKEN.sub(r"\g<before><token>", text)
    return URL.sub(_without_query, URL_USER.sub("<user>@", KNOWN.sub("<token>", text)))


def secret_in(text: str) -> str | None:
    """What secret a text holds, in words that don't repeat it; None where it holds none that is known. A
    URL's query is none by itself."""
    variables = [f"the value of {name}" for name, _ in _variables_in(text)]
    if variables:
        return variables[0]
    if (token := KNOWN.search(text)) is not None:
        return f"a token, {token[0][:4]}..."
    if "eyJ" in text and WEB_TOKEN.search(text):
        return "a JSON web token"
    user = URL_USER.search(text)
    return "a URL with a user's name" if user is not None and ":" in user[0] else None


def _variables_in(text: str) -> list[tuple[str, str]]:
    """The environment's secrets that a text holds, by name; the longest first, since one may be the beginning
    of another."""
    if len(text) < SHORTEST:
        return []
    return [
        (name, value)
        for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1]))
        if len(value) >= SHORTEST and value in text and SECRET_NAME.search(name) and not os.path.exists(value)
    ]


def _without_query(match: re.Match[str]) -> str:
    url = match[0]
    first = min((place for sign in "?#" if (place := url.find(sign)) >= 0), default=len(url))
    return f"{url[:first]}?<query>" if "=" in url[first:] else url

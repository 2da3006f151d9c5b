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
    # The longest first: one value may be the beginning of another.
    for name, value in (
        sorted(os.environ.items(), key=lambda item: -len(item[1])) if len(text) >= SHORTEST else ()
    ):
        if (
            len(value) >= SHORTEST
            and value in text
            and SECRET_NAME.search(name)
            and not os.path.exists(value)
        ):
            text = text.replace(value, f"<{name}>")
    if "eyJ" in text:
        text = WEB_TOKEN.sub(r"\g<before><token>", text)
    return URL.sub(_without_query, URL_USER.sub("<user>@", KNOWN.sub("<token>", text)))


def _without_query(match: re.Match[str]) -> str:
    url = match[0]
    first = min((place for sign in "?#" if (place := url.find(sign)) >= 0), default=len(url))
    return f"{url[:first]}?<query>" if "=" in url[first:] else url

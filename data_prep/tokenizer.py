"""Loading a tokenizer without importing torch, with the chat template, the date and the special tokens settled."""

import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.config import CHAT_TEMPLATES
from data_prep.errors import DataError
from data_prep.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATES = {name: Path(__file__).parent / "templates" / f"{name}.jinja" for name in CHAT_TEMPLATES}
"""The chat templates that a recipe can name."""

DEFAULT_DATE = "26 Jul 2024"
DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y")
CONTROL_TOKEN = re.compile(r"<\|.+\|>")


@dataclass(frozen=True)
class Rendering:
    """What rendering needs beside the template itself; kept on the tokenizer, never saved with it."""

    date_string: str = DEFAULT_DATE
    template_name: str = "the tokenizer's own"

    def pin(self, template: str) -> str:
        """The template with strftime_now giving the pinned date.

        transformers binds strftime_now to today's date, and turns every function that is handed to a template into a
        string, so the template gets a macro of that name in front of it. A date_string that is no date is given as it is.
        """
        if "strftime_now" not in template:
            return template
        body = "date_string"
        if (date := self._date()) is not None:
            body = "format" + "".join(f" | replace({json.dumps(code)}, {json.dumps(text)})" for code, text in _directives(date))
        # `+%}` keeps a line break at the start of the template.
        return "{%- macro strftime_now(format) -%}{{- " + body + " -}}{%- endmacro +%}" + template

    def _date(self) -> datetime | None:
        for known in DATE_FORMATS:
            try:
                return datetime.strptime(self.date_string, known)
            except ValueError:
                continue
        return None


def _directives(date: datetime) -> list[tuple[str, str]]:
    """Each of strftime's codes with what it stands for on this date; %-d and its like are without the leading zero."""
    codes = [flag + letter for letter in "aAbBcdDeFGHIjmMpSTuUVwWxXyY" for flag in ("%-", "%")]
    return [(code, date.strftime(code)) for code in codes]


def rendering_of(tokenizer: "PreTrainedTokenizerFast") -> Rendering:
    """How this tokenizer's template is rendered: as load_tokenizer settled it, or the defaults."""
    rendering = getattr(tokenizer, "rendering", None)
    return rendering if isinstance(rendering, Rendering) else Rendering()


def template_choices() -> str:
    """The choices for model.chat_template, for messages."""
    return f"{', '.join(TEMPLATES)}, or the path of a Jinja file"


def load_tokenizer(
    folder: str | Path,
    *,
    chat_template: str | None = None,
    date_string: str = DEFAULT_DATE,
    pad_token: str | None = None,
    new_tokens: Sequence[str] = (),
) -> "PreTrainedTokenizerFast":
    """The fast tokenizer in a model's folder.

    `chat_template` replaces the tokenizer's own: a name of TEMPLATES or a Jinja file; it writes BOS, once, where the
    tokenizer adds one to plain text. `date_string` is the date that a
    template gets, whether it reads `date_string` or calls `strftime_now`. The pad token is `pad_token`, else the
    tokenizer's own, else its end token. `new_tokens` are added to the vocabulary; those in the shape <|name|> count as
    special, so they are left out of decoded answers. Raises DataError.
    """
    tokenizer = _load(Path(folder))
    template_name = Rendering.template_name
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
        template_name = chat_template
    _add_tokens(tokenizer, new_tokens)
    _set_pad_token(tokenizer, pad_token)
    tokenizer.rendering = Rendering(date_string, template_name)
    if chat_template is not None and adds_bos(tokenizer):
        _begin_with_bos(tokenizer)
    return tokenizer


def adds_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the tokenizer puts a token that begins a text in front of each by itself, as LLaMA's do."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x", verbose=False)["input_ids"][:1] == [bos]


def _begin_with_bos(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Let a template that writes no BOS begin with it; so the template that is saved with the model does, too."""
    from data_prep.render import render

    try:
        text = render([Message("user", "x"), Message("assistant", "y")], tokenizer)
    except DataError:  # said of the first row, with its place
        return
    if not text.startswith(tokenizer.bos_token):
        tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)


def _load(folder: Path) -> "PreTrainedTokenizerFast":
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"{folder} has no tokenizer.json; a fast tokenizer is needed. A tokenizer.model can be converted once with "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    # AutoTokenizer would import torch, which costs seconds.
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(os.fspath(folder), local_files_only=True)
        return tokenizer
    except Exception as error:
        raise DataError(f"the tokenizer in {folder} can't be loaded: {error}") from error


def _read_template(chat_template: str) -> str:
    path = TEMPLATES.get(chat_template) or Path(chat_template).expanduser()
    if not path.is_file():
        close = difflib.get_close_matches(chat_template, TEMPLATES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise DataError(
            f"chat_template {chat_template!r} is no file and no known template{hint}; expected {template_choices()}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"chat_template {path} is not UTF-8 text: {error}") from error


def _add_tokens(tokenizer: "PreTrainedTokenizerFast", new_tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=CONTROL_TOKEN.fullmatch(token) is not None) for token in new_tokens]
    )


def _set_pad_token(tokenizer: "PreTrainedTokenizerFast", pad_token: str | None) -> None:
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise DataError(
                f"pad_token {pad_token!r} is not in the vocabulary; name one that is, or add it to model.new_tokens"
            )
        tokenizer.pad_token = pad_token
    elif tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has neither a pad token nor an end token; set model.pad_token")
        tokenizer.pad_token = tokenizer.eos_token

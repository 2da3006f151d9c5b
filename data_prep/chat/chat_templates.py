"""Chat templates by name, and what rendering one needs besides its text."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.config import CHAT_TEMPLATES, PREPARATION, is_template_text
from data_prep.disk import NOTES_BYTES, read_regular
from data_prep.errors import DataError
from data_prep.tokenizers.tokens import ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATES = {name: Path(__file__).parent / "templates" / f"{name}.jinja" for name in CHAT_TEMPLATES}
"""The chat templates that a recipe can name."""

BEFORE_4 = {"alpaca": Path(__file__).parent / "templates" / "earlier" / "alpaca.jinja"}
"""Those that preparations before 4 have otherwise."""

DEFAULT, TOOL_USE = "default", "tool_use"
"""The named templates that transformers chooses by itself: the second if there are tools."""

DEFAULT_DATE = "26 Jul 2024"
DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y")


PINNED = re.compile(r"\{#- pinned date: (?P<date>.+?) -#\}.*?\{#- end of pin \+#\}", re.DOTALL)
"""The prefix of a template that was saved with its date."""


@dataclass(frozen=True)
class Rendering:
    """What rendering needs besides the template; kept on the tokenizer, not in its template."""

    date_string: str = DEFAULT_DATE
    template_name: str = "the tokenizer's own"
    preparation: int = PREPARATION

    def pin(self, template: str) -> str:
        """The template with this date in it, whether it asks for `date_string` or calls `strftime_now`.

        transformers binds strftime_now to today's date, and turns every function that is passed to a template
        into a string, so a macro of that name is put before the template. A date_string that is not a date is
        passed unchanged.
        """
        if not asks_for_date(template):
            return template
        body = "date_string"
        if (date := self._date()) is not None:
            body = "format" + "".join(
                f" | replace({json.dumps(code)}, {json.dumps(text)})" for code, text in _directives(date)
            )
        in_comment = json.dumps(self.date_string).replace("#}", r"#\u007d")
        literal = json.dumps(self.date_string, ensure_ascii=False)
        return (
            f"{{#- pinned date: {in_comment} -#}}{{%- if date_string is not defined -%}}{{%- set date_string "
            f"= {literal} -%}}{{%- endif -%}}{{%- macro strftime_now(format) -%}}{{{{- {body} -}}}}{{%- "
            f"endmacro -%}}"
            # `+#}` keeps a line break at the start of the template.
            f"{{#- end of pin +#}}{template}"
        )

    def _date(self) -> datetime | None:
        for known in DATE_FORMATS:
            try:
                return datetime.strptime(self.date_string, known)
            except ValueError:
                continue
        return None


def asks_for_date(template: str) -> bool:
    """Whether a template writes a date that is not in the conversation."""
    return "strftime_now" in template or "date_string" in template


def unpinned(template: str) -> tuple[str, str | None]:
    """A template as it was before its date was pinned, and that date; None if none is pinned."""
    match = PINNED.match(template)
    if match is None:
        return template, None
    return template[match.end() :], str(json.loads(match["date"]))


def _directives(date: datetime) -> list[tuple[str, str]]:
    """Each of strftime's codes with its value on this date; %-d and the like have no leading zero."""
    codes = [flag + letter for letter in "aAbBcdDeFGHIjmMpSTuUVwWxXyY" for flag in ("%-", "%")]
    return [(code, date.strftime(code)) for code in codes]


def rendering_of(tokenizer: "PreTrainedTokenizerFast") -> Rendering:
    """How this tokenizer's template is rendered: as load_tokenizer set it, or the defaults."""
    rendering = getattr(tokenizer, "rendering", None)
    return rendering if isinstance(rendering, Rendering) else Rendering()


def templates_of(tokenizer: "PreTrainedTokenizerFast") -> dict[str, str]:
    """The tokenizer's chat templates by name; an unnamed one is the default. Empty if it has none."""
    found = tokenizer.chat_template
    if found is None:
        return {}
    return (
        {str(name): str(text) for name, text in found.items()}
        if isinstance(found, dict)
        else {DEFAULT: str(found)}
    )


def template_choices(own: Iterable[str] = ()) -> str:
    """The choices for model.chat_template, for messages; `own` are the tokenizer's named templates."""
    named = f"; the tokenizer's own {', '.join(own)}" if own else ""
    return f"{', '.join(TEMPLATES)}{named}; or the path of a Jinja file"


def adds_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the tokenizer itself adds a BOS before each text, as LLaMA's do."""
    bos = tokenizer.bos_token_id
    return bos is not None and ids_of("x", tokenizer, special=True)[:1] == [bos]


def adds_eos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the tokenizer itself adds an EOS after each text."""
    eos = tokenizer.eos_token_id
    return eos is not None and ids_of("x", tokenizer, special=True)[-1:] == [eos]


def template_name(chat_template: str) -> str:
    """What messages call a template that a recipe names or holds."""
    return "the recipe's own" if is_template_text(chat_template) else chat_template


def read_template(chat_template: str, own: Mapping[str, str], preparation: int = PREPARATION) -> str:
    """The text of a template that a recipe names or holds: one of TEMPLATES, of the tokenizer's `own`, a
    file, or the text itself. Raises DataError."""
    if is_template_text(chat_template):
        return chat_template
    if chat_template in own and chat_template not in TEMPLATES:
        return own[chat_template]
    named = TEMPLATES if preparation >= 4 else TEMPLATES | BEFORE_4
    path = named.get(chat_template) or Path(chat_template).expanduser()
    if not path.is_file():
        close = difflib.get_close_matches(chat_template, [*TEMPLATES, *own], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise DataError(
            f"chat_template {chat_template!r} is neither a file nor a known template{hint}; expected "
            f"{template_choices(own)}"
        )
    try:
        return read_regular(path, NOTES_BYTES).decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"chat_template {path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DataError(f"chat_template {path} {error.strerror or error}") from error

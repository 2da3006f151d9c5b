"""Texts in two languages, in two columns or in an object with a key per language."""

import re
from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions, ask
from data_prep.formats.columns import a_json_type, as_text, column, optional_text_column, text_column
from data_prep.formats.text_values import as_structure
from data_prep.messages import Conversation
from data_prep.sources.rows import listed

LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French", "he": "Hebrew",
    "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sv": "Swedish", "sw": "Swahili",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""Names of languages by code; any other code is written as it is in the row."""


def parse_translation(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """From one language to another; the languages are the columns' names, or the two keys of `translation`,
    in order."""
    names = {side: options.columns.get(side, "") for side in ("source", "target")}
    pair = values.get("translation")
    if pair is not None and values.get("source") is None:
        if not isinstance(pair, dict):
            raise ValueError(f"translation is {a_json_type(pair)}; an object with two languages was expected")
        if not all(names.values()):
            if len(pair) != 2:
                keys = listed(pair, "(none)")
                raise ValueError(
                    f"translation has the keys {keys}; say which two: columns: {{source: ..., target: ...}}"
                )
            names = dict(zip(names, pair, strict=True))
        texts = {side: as_text(column(pair, name), f"translation.{name}") for side, name in names.items()}
    else:
        texts = {side: text_column(values, side) for side in names}
    spoken = {
        side: _language(optional_text_column(values, f"{side}_language") or name)
        for side, name in names.items()
    }
    origin = f" from {spoken['source']}" if spoken["source"] else ""
    goal = f" to {spoken['target']}" if spoken["target"] else ""
    return [ask(f"Translate{origin}{goal}:\n\n{texts['source']}", texts["target"])]


def _language(name: str) -> str:
    """A language's name for its code (de, de-DE, de_DE); empty for names such as "source" or "text_1"."""
    code = re.split(r"[-_]", name)[0]
    if code.lower() in LANGUAGES:
        return LANGUAGES[code.lower()]
    return (
        name
        if name.isalpha()
        and name.lower() not in ("source", "target", "src", "tgt", "input", "output", "text")
        else ""
    )


FORMAT = Format(
    "translation",
    row="""`{"translation": {"en": ..., "de": ...}}`""",
    columns=Columns((("translation",), ("source", "target")), ("source_language", "target_language")),
    parse=parse_translation,
    readers={"translation": as_structure},
    nested="translation",
)

"""Text that is safe to print: what comes from data, models, files and their names may hold what a terminal acts on."""

import re
import unicodedata

ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, SOS, PM and APC with their text
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erasing
    r"|\x1b[ -/]*[0-~]"  # the rest
)
BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_for_terminal(text: str) -> str:
    """Text without what a terminal acts on: escape sequences, control characters but newline and tab, bidi overrides."""
    text = ESCAPE_SEQUENCES.sub("", text)
    return "".join(
        character
        for character in text
        if character in "\n\t" or (unicodedata.category(character) not in ("Cc", "Cs") and character not in BIDI_CONTROLS)
    )

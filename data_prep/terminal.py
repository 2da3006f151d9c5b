"""Text that is safe to print: what comes from data, models, files and their names may hold what a terminal acts on."""

import re

# Each part ends where the next sequence begins, so that text full of beginnings without an end is gone through once.
ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*+(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]"  # CSI: colours, cursor, erasing
    r"|\x1b[ -/]*+[0-~]"  # the rest
)
# The Unicode categories Cc without newline and tab, and Cs; what reorders text that goes both ways.
UNPRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean_for_terminal(text: str) -> str:
    """Text without what a terminal acts on: escape sequences, control characters but newline and tab, bidi overrides."""
    return UNPRINTED.sub("", ESCAPE_SEQUENCES.sub("", text))

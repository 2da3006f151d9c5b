"""What a row means: the formats, a file each.

To add one is to write its file and name it here, or to extend the tuple: `formats.FORMATS += (MINE,)` before
a recipe is loaded, in each process that loads it.
"""

from data_prep.formats import (
    alpaca,
    chat,
    classification,
    code,
    feedback,
    preference,
    prompt,
    prompt_completion,
    python,
    question_answer,
    regression,
    summarisation,
    template,
    text,
    translation,
)
from data_prep.formats.base import Format

FORMATS: tuple[Format, ...] = (
    alpaca.FORMAT,
    prompt_completion.FORMAT,
    prompt.FORMAT,
    *chat.FORMATS,
    text.FORMAT,
    question_answer.FORMAT,
    classification.FORMAT,
    regression.FORMAT,
    translation.FORMAT,
    summarisation.FORMAT,
    code.FORMAT,
    preference.FORMAT,
    feedback.FORMAT,
    template.FORMAT,
    python.FORMAT,
)
"""All formats; auto detects one of those that name their columns."""


def named(name: str) -> Format:
    """The format of this name. Raises LookupError for one that isn't in FORMATS, which a source refuses."""
    for form in FORMATS:
        if form.name == name:
            return form
    raise LookupError(f"no format is called {name!r}")

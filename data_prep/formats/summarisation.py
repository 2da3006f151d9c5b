"""Documents and their summaries."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions, ask
from data_prep.formats.columns import as_text, column
from data_prep.formats.text_values import as_texts_or_text
from data_prep.messages import Conversation


def parse_summarisation(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """A document and its summary; a list of sentences is joined, and each of several summaries makes an
    example."""
    pair = (
        ("source", "target")
        if values.get("document") is None and "source" in values
        else ("document", "summary")
    )
    document, summary = (column(values, name) for name in pair)
    if isinstance(document, list):
        document = " ".join(as_text(part, f"{pair[0]}[{index}]") for index, part in enumerate(document))
    question = f"Summarize:\n\n{as_text(document, pair[0])}"
    if not isinstance(summary, list):
        return [ask(question, as_text(summary, pair[1]))]
    if not summary:
        raise ValueError(f"{pair[1]} is an empty list; a summary was expected")
    return [ask(question, as_text(text, f"{pair[1]}[{index}]")) for index, text in enumerate(summary)]


FORMAT = Format(
    "summarisation",
    row="""`{"document": ..., "summary": ...}`""",
    columns=Columns((("document", "summary"), ("source", "target"))),
    parse=parse_summarisation,
    readers=dict.fromkeys(("document", "summary", "source", "target"), as_texts_or_text),
)

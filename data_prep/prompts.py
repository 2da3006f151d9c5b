"""Prompts that the model answers itself, as documents."""

from typing import TYPE_CHECKING, Any

from data_prep.encoding import RowEncoding
from data_prep.messages import Example, Parsed, Preference

if TYPE_CHECKING:
    from data_prep.chat.tokenization import Rendered, Tokenization


class PromptEncoding(RowEncoding):
    """A row with an answer, to compare the model's with, or a prompt alone: that is an end token behind it,
    as if nothing were answered."""

    def examples(self, row: Parsed) -> tuple[Example, ...]:
        """The row."""
        if not isinstance(row, Preference) and not row.answered:
            return (row,)
        return super().examples(row)

    def refusal(self, rows: int) -> str:
        """Two answers, and judgements, are read by nothing here."""
        return (
            f"{rows:,} of its rows are pairs of a chosen and a rejected answer, or answers that were judged, "
            "and here the model answers itself: use a format with one answer, or prompt"
        )

    def render(self, example: Example, tokenization: "Tokenization", place: str) -> "Rendered":
        """The prompt alone where nothing is behind it."""
        if example.answered:
            return super().render(example, tokenization, place)
        return tokenization.render_prompt(example)

    def cache_key(self) -> dict[str, Any]:
        """Rows may be prompts alone."""
        return super().cache_key() | {"documents": "prompt"}

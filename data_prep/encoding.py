"""How the rows of an objective become documents. A language model's way is the default; labels.py has a
classifier's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.messages import Conversation, Example, Parsed, Preference

if TYPE_CHECKING:
    from data_prep.audit.report import SourceReport
    from data_prep.chat.tokenization import Rendered, Tokenization
    from data_prep.table.documents import Document


class RowEncoding:
    """A row is one document, in which the answers (or the text) are learned.

    Another objective overrides what differs for it. The documents of one row stay together: held out,
    dropped, packed and trained on as one.
    """

    documents_per_row = 1

    def examples(self, row: Parsed) -> tuple[Example, ...]:
        """The examples that a row's documents are made of, as many as documents_per_row (any number where
        that is 1, for each is alone); none if the row has no such form.

        Raises DataError for a row whose answer can't be learned.
        """
        judged = isinstance(row, Conversation) and row.good is not None
        return () if judged or isinstance(row, Preference) or not row.answered else (row,)

    def refusal(self, rows: int) -> str:
        """Why a source is refused of which so many rows have another form."""
        return (
            f"{rows:,} of its rows are pairs of a chosen and a rejected answer, answers that were judged, or "
            "prompts alone: name an objective that learns from these (objective.kind: dpo, orpo, simpo, kto "
            "...; grpo); to learn only the good answers, use format template or messages"
        )

    def render(self, example: Example, tokenization: "Tokenization", place: str) -> "Rendered":
        """An example as text, and what of it is learned. Raises DataError if it can't be written."""
        return tokenization.render_answers(example, place)

    def shown_answer(self, targets: tuple[float, ...]) -> str | None:
        """What an audit shows in place of the learned token of a document with these targets; None if the
        token itself."""
        return None

    def longest(self, tokens: int) -> "Document":
        """A document that needs the most memory of all with so many tokens."""
        from data_prep.table.documents import Document

        return Document([0] * tokens, ((1, tokens, 1.0),), place="longest")

    def count(self, documents: "Sequence[Document]", report: "SourceReport") -> None:
        """Count in the report what is to be known of a row that is kept, beside what is counted of every
        row."""

    def check(self, reports: "Sequence[SourceReport]") -> None:
        """Raises DataError where all rows together are not what can be learned from."""

    def cache_key(self) -> dict[str, Any]:
        """What of this determines documents, as plain values."""
        return {"head": None}


ANSWERS = RowEncoding()
"""A language model's."""

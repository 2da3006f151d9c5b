"""A pair of answers as two documents that stay together: the chosen one, then the rejected one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.encoding import RowEncoding
from data_prep.messages import Conversation, Example, Parsed, Preference

if TYPE_CHECKING:
    from data_prep.audit.report import SourceReport
    from data_prep.table.documents import Document


def conversations_of(row: Preference) -> tuple[Conversation, Conversation]:
    """The prompt with its chosen answer, which is a good one, and with the rejected one, which isn't."""
    chosen, rejected = (
        Conversation(
            row.prompt + answer,
            len(row.prompt),
            tools=row.tools,
            changes=row.changes,
            template_arguments=row.template_arguments,
            good=good,
        )
        for answer, good in ((row.chosen, True), (row.rejected, False))
    )
    return chosen, rejected


class PairEncoding(RowEncoding):
    """Each answer after the turns that both continue, of which nothing is learned."""

    documents_per_row = 2

    def examples(self, row: Parsed) -> tuple[Example, ...]:
        """The two conversations; none if the row is no pair."""
        return conversations_of(row) if isinstance(row, Preference) else ()

    def refusal(self, rows: int) -> str:
        """Other formats have one answer per row."""
        return f"{rows:,} of its rows are no pairs of answers, which are compared here: use format preference"

    def count(self, documents: "Sequence[Document]", report: "SourceReport") -> None:
        """The two lengths, and what both share."""
        chosen, rejected = documents
        report.pair(chosen, rejected)

    def cache_key(self) -> dict[str, Any]:
        """Rows are read as pairs."""
        return super().cache_key() | {"documents": "pair"}

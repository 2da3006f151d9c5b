"""A pair of answers as two documents that stay together: the chosen one, then the rejected one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.encoding import RowEncoding
from data_prep.errors import DataError
from data_prep.messages import Conversation, Example, Parsed, Preference
from data_prep.text import shown

if TYPE_CHECKING:
    from data_prep.audit.report import SourceReport
    from data_prep.chat.tokenization import Rendered, Tokenization
    from data_prep.table.documents import Document


def conversations_of(row: Preference) -> tuple[Conversation, Conversation]:
    """The prompt with its chosen answer, which is a good one, and with the rejected one, which isn't. Raises
    DataError as checked_weights does."""
    chosen, rejected = (
        checked_weights(
            Conversation(
                row.prompt + answer,
                len(row.prompt),
                tools=row.tools,
                changes=row.changes,
                template_arguments=row.template_arguments,
                good=good,
                margin=row.margin,
            )
        )
        for answer, good in ((row.chosen, True), (row.rejected, False))
    )
    return chosen, rejected


def checked_weights(conversation: Conversation) -> Conversation:
    """The conversation. Raises DataError where a turn of its answer counts other than once or not at all: an
    answer's log-probability is a sum over tokens, which weights would make another number."""
    for message in conversation.messages[conversation.completion_start :]:
        weights = (message.loss_weight, *(weight for _, weight in message.parts))
        if odd := [weight for weight in weights if weight not in (0, 1) and message.role == "assistant"]:
            raise DataError(
                f"the assistant's turn {shown(message.content)} has weight {odd[0]:g}, and answers are "
                "compared by their probabilities: give it 1, or 0 to leave it out"
            )
    return conversation


def refuse_margin(row: Preference) -> None:
    """Raises DataError where a row says by how much one answer is better."""
    if row.margin is not None:
        raise DataError(
            "margin is read by objective reward alone; ignore_columns: [margin] says that it doesn't count"
        )


class PairEncoding(RowEncoding):
    """Each answer after the turns that both continue, of which nothing is learned."""

    documents_per_row = 2
    reads_margins: ClassVar[bool] = False

    def examples(self, row: Parsed) -> tuple[Example, ...]:
        """The two conversations; none if the row is no pair. Raises DataError for a margin that nothing
        reads."""
        if not isinstance(row, Preference):
            return ()
        if not self.reads_margins:
            refuse_margin(row)
        return conversations_of(row)

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


class RewardEncoding(PairEncoding):
    """Each answer with an end token behind it, in whose place a head's reward is read; what the chosen one
    learns is its margin, where the row has one."""

    reads_margins = True

    def render(self, example: Example, tokenization: "Tokenization", place: str) -> "Rendered":
        """The whole conversation; nothing of it is learned but what the head says behind it."""
        from data_prep.chat.loss_weights import TextSpan
        from data_prep.chat.rendering import end_id

        found = tokenization.render_answers(example, place)
        end, margin = len(found.text), 0.0
        if isinstance(example, Conversation) and example.good:
            margin = example.margin or 0.0
        return replace(
            found,
            spans=[TextSpan(end, end)],
            after=[end_id(tokenization.tokenizer)],
            must_end=False,
            asks=(),
            targets=(margin,),
        )

    def cache_key(self) -> dict[str, Any]:
        """Where a reward is read, and which margins are learned."""
        return super().cache_key() | {"documents": "reward with margin"}

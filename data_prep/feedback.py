"""Answers with a judgement each as documents, and each prompt with another row's answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.encoding import RowEncoding
from data_prep.errors import DataError
from data_prep.messages import Conversation, Example, Parsed, Preference
from data_prep.pairs import checked_weights, conversations_of, refuse_margin

if TYPE_CHECKING:
    from data_prep.audit.report import SourceReport
    from data_prep.chat.tokenization import Rendered, Tokenization
    from data_prep.table.documents import Document

MISMATCH = 0x6B746F
"""Separates the draw of other rows' answers from others with the same seed."""


class FeedbackEncoding(RowEncoding):
    """A judged answer after its prompt, with 1 for a good one and 0 for a bad one; a pair is one of each."""

    def examples(self, row: Parsed) -> tuple[Example, ...]:
        """The conversation; of a pair two; none if nothing is judged."""
        if isinstance(row, Preference):
            refuse_margin(row)
            return conversations_of(row)
        if isinstance(row, Conversation) and row.good is not None:
            return (checked_weights(row),)
        return ()

    def refusal(self, rows: int) -> str:
        """Other formats judge nothing."""
        return f"{rows:,} of its rows have no judgement: use format feedback, or preference"

    def render(self, example: Example, tokenization: "Tokenization", place: str) -> "Rendered":
        """The conversation, whose last answer is learned, with the judgement."""
        rendered = tokenization.render_answers(example, place)
        rendered.targets = (float(isinstance(example, Conversation) and bool(example.good)),)
        return rendered

    def count(self, documents: "Sequence[Document]", report: "SourceReport") -> None:
        """The good and the bad answers."""
        report.good_answers += sum(document.targets == (1.0,) for document in documents)
        report.bad_answers += sum(document.targets == (0.0,) for document in documents)

    def check(self, reports: "Sequence[SourceReport]") -> None:
        """Raises DataError where all answers to train on have one judgement."""
        good, bad = (
            sum(getattr(report, name) for report in reports if report.use == "train")
            for name in ("good_answers", "bad_answers")
        )
        if good + bad and not (good and bad):
            which = "good" if good else "bad"
            raise DataError(
                f"all {good + bad:,} answers to train on are {which} ones, and what tells the two apart is "
                "learned: add rows with the other judgement"
            )

    def cache_key(self) -> dict[str, Any]:
        """Rows are read as judged answers."""
        return super().cache_key() | {"documents": "feedback"}


class Mismatched(Sequence["Document"]):
    """Each document's prompt with the answer of the one after it in an order that is drawn: answers that have
    nothing to do with the prompt."""

    def __init__(self, documents: "Sequence[Document]", seed: int, longest: int):
        """No document has more than `longest` tokens. Raises DataError for a single document."""
        if len(documents) == 1:
            raise DataError(
                f"{documents[0].place}: a single answer is left to train or to evaluate on, and its prompt "
                "has no other row's answer to go with: add rows"
            )
        import numpy as np

        order = np.random.default_rng([seed, MISMATCH]).permutation(len(documents))
        self.documents, self.longest = documents, longest
        self.next = np.empty_like(order)
        self.next[order] = np.roll(order, -1)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: Any) -> Any:
        from data_prep.table.documents import Document

        own, other = self.documents[index], self.documents[int(self.next[index])]
        prompt, answer = own.token_ids[: own.spans[0][0]], other.token_ids[other.spans[0][0] :]
        whole = (prompt + answer)[: self.longest]
        shift = len(prompt) - other.spans[0][0]
        spans = ((first + shift, min(end + shift, len(whole)), weight) for first, end, weight in other.spans)
        kept = tuple(span for span in spans if span[0] < span[1])
        return Document(whole, kept, f"{own.place} with the answer of {other.place}", own.targets)

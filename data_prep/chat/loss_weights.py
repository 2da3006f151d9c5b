"""A learned text, and weights within it: by regular expressions, and of a message's parts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from data_prep.chat.contents import ContentSpan
from data_prep.chat.offsets import Offsets, tokens_of
from data_prep.errors import DataError
from data_prep.messages import WeightedText
from data_prep.table.documents import WeightedSpan

WeightedCharacters = tuple[int, int, float]
"""The first character, the one after the last, and what the weight of its tokens is multiplied by."""


@dataclass(slots=True)
class TextSpan:
    """A supervised part of a text, in characters; the end is exclusive."""

    start: int
    end: int
    weight: float = 1.0
    content_end: int = 0
    """Where an answer's own text ends; what the template writes to end the turn is between here and `end`."""
    ask: int | None = None
    """Where the model would be asked for this answer; None if it would get a different prompt than the text
    before it."""
    parts: Sequence[WeightedCharacters] = ()
    """Its parts whose weight differs from that of the rest."""


class LossWeights:
    """data.loss_weights: what a pattern matches in a learned text counts by its weight.

    Where matches of several patterns overlap, the first pattern in the recipe decides.
    """

    def __init__(self, weights: Mapping[str, float]):
        self._patterns = [(re.compile(pattern), weight) for pattern, weight in weights.items()]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._patterns)

    def split(
        self, text: str, start: int, end: int, parts: Sequence[WeightedCharacters] = ()
    ) -> Iterator[WeightedCharacters]:
        """The characters from start to end as neighbouring spans of one factor each: the pattern's, times
        that of the message's part."""
        factors = [1.0] * (end - start)
        for pattern, weight in reversed(self._patterns):
            for match in pattern.finditer(text[start:end]):
                factors[match.start() : match.end()] = [weight] * (match.end() - match.start())
        for first, last, weight in parts:
            for index in range(first - start, last - start):
                factors[index] *= weight
        position = start
        for factor, run in groupby(factors):
            length = sum(1 for _ in run)
            yield position, position + length, factor
            position += length

    def spans(self, text: str, span: TextSpan, most: int, offsets: Offsets, shift: int) -> list[WeightedSpan]:
        """A span's tokens as spans of one weight each, without those of weight 0; `shift` tokens are before
        the text. Characters from `most` on are the end of a turn, which keeps the turn's weight."""
        found: list[WeightedSpan] = []
        for start, end, factor in [*self.split(text, span.start, most, span.parts), (most, span.end, 1.0)]:
            first, last = tokens_of(start, end, offsets, text)
            add_span(found, (max(first + shift, 1), last + shift, span.weight * factor))
        return found


def add_span(spans: list[WeightedSpan], span: WeightedSpan) -> None:
    """Append a span, as a part of the last one if it continues that; not one without tokens or weight."""
    first, last, weight = span
    if first >= last or not weight:
        return
    if spans and spans[-1][1:] == (first, weight):
        first = spans.pop()[0]
    spans.append((first, last, weight))


def places_of_parts(
    parts: Sequence[WeightedText], text: str, span: ContentSpan, place: str
) -> list[WeightedCharacters]:
    """Where a message's parts are in the text that a template wrote for it, surrounding blanks aside.

    Raises DataError if the template wrote something else.
    """
    content = "".join(part for part, _ in parts)
    start, blanks = text.find(content.strip(), *span), len(content) - len(content.lstrip())
    if start < 0 or not content.strip():
        raise DataError(
            f"the chat template doesn't write {place} as it is, so the weights of its parts can't be placed; "
            "give the message one weight"
        )
    found, position = [], start - blanks
    for part, weight in parts:
        first, last = max(position, start), min(position + len(part), start + len(content.strip()))
        if first < last and weight != 1:
            found.append((first, last, weight))
        position += len(part)
    return found

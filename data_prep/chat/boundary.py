"""The prompt that is asked is the prompt that was learned: its tokens, taken alone, begin those of prompt and answer.

Of a plain text both parts are tokenised apart and joined, so it always holds. A conversation keeps the ids that
transformers' apply_chat_template gives: where a token runs over the start of an answer, it doesn't hold, and is found here.
"""

from collections.abc import Sequence

from data_prep.chat.offsets import Encoder, Offsets

LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
LONGEST_HEADER = 200
"""Characters of what stands between a special token and an answer, for its tokens to be worth remembering."""


def asked_text(prompt: str) -> str:
    """A plain prompt as it is asked: without the blanks at its end, which belong to the first token of what follows.

    Line breaks stay: they are tokens of their own, and an answer below a heading begins on a line of its own.
    """
    end = len(prompt)
    while end and prompt[end - 1].isspace() and prompt[end - 1] not in LINE_BREAKS:
        end -= 1
    return prompt[:end] or prompt


class Boundary:
    """Compares the tokens before an answer with those of the prompt alone."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._known: dict[tuple[int, str], list[int]] = {}

    def asked_otherwise(self, text: str, start: int, ids: Sequence[int], offsets: Offsets, first: int) -> list[int] | None:
        """The last tokens of text[:start] alone, where they are not those before the answer's `first` token; else None.

        An added token splits a text, so what stands before the last one is the same in both.
        """
        last = first - 1
        while last >= 0 and ids[last] not in self._encoder.added:
            last -= 1
        behind = text[offsets.ends[last] : start] if last >= 0 else text[:start]
        alone = self._behind(ids[last], behind) if last >= 0 else self._encoder.ids_of(behind)
        return None if alone == list(ids[last + 1 : first]) else alone

    def _behind(self, token: int, text: str) -> list[int]:
        """The ids of a text behind an added token."""
        if (token, text) in self._known:
            return self._known[token, text]
        found = self._encoder.ids_of(self._encoder.added[token] + text)[1:]
        if len(text) <= LONGEST_HEADER:
            self._known[token, text] = found
        return found

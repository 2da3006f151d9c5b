"""Checks that a prompt is learned as it is asked: its tokens, when tokenised alone, begin those of prompt and
answer.

The parts of a plain text are tokenised separately and joined, so this always holds. A conversation keeps the
ids of transformers' apply_chat_template: if a token spans the start of an answer, it doesn't hold, which is
detected here.
"""

from collections.abc import Sequence

from data_prep.chat.offsets import Encoder, Offsets

LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
LONGEST_HEADER = 200
"""Maximum characters between a special token and an answer for which tokens are cached."""


def asked_text(prompt: str) -> str:
    """A plain prompt as it is asked: without trailing blanks, which belong to the first token of what
    follows.

    Line breaks stay: they are separate tokens, and an answer below a heading begins on its own line.
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

    def asked_otherwise(
        self, text: str, start: int, ids: Sequence[int], offsets: Offsets, first: int
    ) -> list[int] | None:
        """The last tokens of text[:start] alone, if they differ from those before the answer's `first` token;
        else None.

        An added token splits a text, so everything before the last one is the same in both.
        """
        last = first - 1
        while last >= 0 and ids[last] not in self._encoder.added:
            last -= 1
        behind = text[offsets.ends[last] : start] if last >= 0 else text[:start]
        alone = self._behind(ids[last], behind) if last >= 0 else self._encoder.ids_of(behind)
        return None if alone == list(ids[last + 1 : first]) else alone

    def _behind(self, token: int, text: str) -> list[int]:
        """The ids of a text after an added token."""
        if (token, text) in self._known:
            return self._known[token, text]
        found = self._encoder.ids_of(self._encoder.added[token] + text)[1:]
        if len(text) <= LONGEST_HEADER:
            self._known[token, text] = found
        return found

"""The text of an answer while its tokens come: whole characters only, and nothing of a text that ends it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from data_prep.tokenizers.tokens import text_of

UNFINISHED = "\ufffd"
"""What bytes are decoded to of which a character still lacks some."""


class AnswerText:
    """The text of an answer, which ends before the first of the texts in `stop`.

    Its pieces together are what the tokenizer makes of all tokens at once, without special tokens. Where some
    bytes are no character, SentencePiece's tokenizers give up whole ones beside them, too; here those stay.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()):
        self.ids: list[int] = []
        self.stopped = False
        """Whether a text in `stop` was met."""
        self._tokenizer, self._stop = tokenizer, stop
        self._text, self._given = "", 0
        # A token's text can depend on the one before: both are decoded, and what is new is taken.
        self._known, self._decoded = 0, 0

    @property
    def text(self) -> str:
        """What was given so far."""
        return self._text[: self._given]

    def add(self, token: int) -> str:
        """The piece that a token adds; empty while a character, or a text that could end the answer, isn't
        whole."""
        self.ids.append(token)
        before = text_of(self.ids[self._known : self._decoded], self._tokenizer)
        now = text_of(self.ids[self._known :], self._tokenizer)
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        alone = not now.startswith(before)  # what was whole before isn't any more
        self._text += text_of(self.ids[self._decoded :], self._tokenizer) if alone else now[len(before) :]
        self._known, self._decoded = self._decoded, len(self.ids)
        return self._take(self._held())

    def finish(self) -> str:
        """The last piece, once no token comes any more."""
        if self.stopped:
            return ""
        whole = text_of(self.ids, self._tokenizer)
        if whole.startswith(self.text):
            self._text = whole
        else:
            self._text += text_of(self.ids[self._decoded :], self._tokenizer)
        return self._take(0)

    def _take(self, held: int) -> str:
        """What may be given, but for so many last characters."""
        found = [place for stop in self._stop if (place := self._text.find(stop, self._given)) >= 0]
        if found:
            self._text, held, self.stopped = self._text[: min(found)], 0, True
        piece = self._text[self._given : len(self._text) - held]
        self._given += len(piece)
        return piece

    def _held(self) -> int:
        """How many last characters could begin a text in `stop`."""
        tail = self._text[self._given :]
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if tail.endswith(stop[:size])),
            default=0,
        )

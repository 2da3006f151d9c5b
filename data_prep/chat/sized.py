"""How many bytes of the text each token of a document covers."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from data_prep.chat.contents import ContentSpan
from data_prep.chat.offsets import ANCHORS, Offsets, byte_lengths
from data_prep.chat.tokenization import Placed, Tokenization
from data_prep.table.documents import Document


class SizedTokenization(Tokenization):
    """A Tokenization that also counts the bytes (UTF-8) of a row's text that each token covers.

    They add up to those of the text, even if tokens split a character. A blank that the tokenizer adds before
    a text doesn't count, and special tokens cover no bytes, except the unknown token.
    """

    def with_bytes(self, examples: Iterable[Placed]) -> Iterator[tuple[Document, list[int]]]:
        """Each example's document, and the bytes of each of its tokens."""
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        special.discard(self.tokenizer.unk_token_id)
        lengths = byte_lengths(self.tokenizer.backend_tokenizer)
        for place, example in examples:
            row = self._render(place, example)
            if row is None:
                continue
            ids, offsets = self._read(row.text, row.contents)
            sizes = bytes_of(row.text, offsets)
            if not row.prompt:
                document = self._document(place, row, ids, offsets)
            else:
                prompt, prompt_offsets = self._read(row.prompt, row.contents)
                document = self._answered(place, row, ids, offsets, prompt)
                rest = document.token_ids[
                    len(row.before) + len(prompt) : len(document.token_ids) - len(row.after)
                ]
                if ids != prompt + rest:
                    ids = prompt + rest
                    after = self._continued(row.text[len(row.prompt) :], rest, as_text=bool(row.contents))
                    sizes = bytes_of(row.prompt, prompt_offsets) + after
            if lengths is not None and int((exact := lengths[ids]).sum()) == len(row.text.encode()):
                sizes = exact.tolist()
            sizes = [0 if token in special else size for token, size in zip(ids, sizes, strict=True)]
            yield document, [0] * len(row.before) + sizes + [0] * len(row.after)

    def _read(self, text: str, contents: Sequence[ContentSpan]) -> tuple[list[int], Offsets]:
        if contents:
            return self._as_text(text, contents)
        return self._encoder.read(self._encoder.encode([text]))[0]

    def _continued(self, text: str, ids: list[int], *, as_text: bool) -> list[int]:
        """The bytes of the tokens of a text that continues another, as offsets.continuation finds them."""
        for anchor in (*ANCHORS, ""):
            whole = anchor + text
            found, offsets = self._read(whole, [(0, len(whole))] if as_text else [])
            sizes = bytes_of(whole, offsets)[len(found) - len(ids) :]
            if found[len(found) - len(ids) :] == ids and sum(sizes) == len(text.encode()):
                return sizes
        return [len(text.encode()), *[0] * (len(ids) - 1)] if ids else []


def bytes_of(text: str, offsets: Offsets) -> list[int]:
    """The bytes of each token by its offsets; text that no token covers belongs to the next one, at the end
    to the last.

    Tokens that share a character get one byte each if it has as many; otherwise the first of them gets all.
    """
    places = [(offsets.starts[index], offsets.ends[index]) for index in range(len(offsets.starts))]
    sizes, done = list[int](), 0
    for place, run in groupby(places):
        tokens = len(list(run))
        end = max(place[1], done)
        size = len(text[done:end].encode())
        sizes += [1] * tokens if tokens == size else [size] + [0] * (tokens - 1)
        done = end
    if sizes:
        sizes[-1] += len(text[done:].encode())
    return sizes

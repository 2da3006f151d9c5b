"""What becomes of a document that is longer than the recipe allows."""

from dataclasses import replace
from typing import TYPE_CHECKING

from data_prep.chat.chat_templates import rendering_of
from data_prep.config import OverLength
from data_prep.epoch.packing import OVERLAP_TOKENS
from data_prep.errors import DataError
from data_prep.table.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PART = " part "
"""Separates a split row's place from a part's number."""


def overlap_of(tokenizer: "PreTrainedTokenizerFast") -> int:
    """How many tokens a document repeats after a cut; none in preparation 2, which lost a label at each
    cut."""
    return OVERLAP_TOKENS if rendering_of(tokenizer).preparation >= 3 else 0


def fitted(
    document: Document, most: int, over_length: OverLength, bos_token_id: int | None, overlap: int
) -> list[Document]:
    """The document, or what is kept of it, as documents of at most `most` tokens; none if it is dropped.

    A cut at the start keeps the BOS; every part of a split document begins with it and continues with the
    last `overlap` tokens of the part before, so that every token after a cut keeps its label. Parts without
    supervised tokens are left out. Raises DataError with over_length "refuse".
    """
    length = len(document.token_ids)
    if length <= most:
        return [document]
    if over_length == "refuse":
        raise DataError(
            f"{document.place} has {length:,} tokens, more than data.max_length_tokens ({most:,}); "
            "raise it, shorten the row, or choose another data.over_length: drop, truncate_end, "
            "truncate_start or split"
        )
    has_bos = document.token_ids[0] == bos_token_id
    if over_length == "truncate_end":
        parts = [document.part(0, most)]
    elif over_length == "truncate_start":
        parts = [_with_bos(document, length - most + has_bos, length, has_bos)]
    elif over_length == "split":
        parts = _split(document, most, has_bos, overlap)
    else:
        parts = []
    return [part for part in parts if part.spans]


def _split(document: Document, most: int, has_bos: bool, overlap: int) -> list[Document]:
    """Parts of equal length except the last: the first unchanged, the others after the BOS if there is
    one."""
    length = len(document.token_ids)
    starts = [0, *range(most, length, most - has_bos - overlap)]
    ends = [*starts[1:], length]
    parts = [
        _with_bos(document, max(0, start - overlap), end, has_bos and start > 0)
        for start, end in zip(starts, ends, strict=True)
    ]
    return [
        replace(part, place=f"{document.place}{PART}{number}") for number, part in enumerate(parts, start=1)
    ]


def _with_bos(document: Document, start: int, end: int, bos: bool) -> Document:
    """A part of a document, with the document's first token before it if `bos` is true."""
    part = document.part(start, end)
    if not bos:
        return part
    spans = tuple((first + 1, last + 1, weight) for first, last, weight in part.spans)
    return replace(part, token_ids=[document.token_ids[0], *part.token_ids], spans=spans)

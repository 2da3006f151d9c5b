"""Packs documents so that little of a row is empty. Shapes: N documents, P packs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.epoch.mixture import epoch_rows
from data_prep.table.documents import Document, WeightedSpan

PackedPiece = tuple[int, int, int]
"""A document's index, and its first token and the one after its last in this pack."""

OVERLAP_TOKENS = 1
"""How many tokens before a cut a document repeats after it, so that the first token after the cut has a
label."""


@dataclass(frozen=True)
class Packs(Sequence[list[PackedPiece]]):
    """Rows of complete documents, or of pieces of them."""

    documents: np.ndarray
    """The index of each piece's document, pack after pack."""
    starts: np.ndarray
    stops: np.ndarray
    bounds: np.ndarray
    """Where each pack begins among the pieces (P + 1)."""
    overlap: int = 0
    """Tokens that a piece repeats if it continues a document."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> list[PackedPiece]:  # type: ignore[override]
        here = slice(self.bounds[index], self.bounds[index + 1])
        return list(
            zip(
                self.documents[here].tolist(),
                self.starts[here].tolist(),
                self.stops[here].tolist(),
                strict=True,
            )
        )

    @property
    def tokens(self) -> np.ndarray:
        """How many slots of each pack are used (P)."""
        return np.add.reduceat(self.stops - self.starts, self.bounds[:-1])

    @property
    def document_tokens(self) -> int:
        """The tokens of all documents; those repeated after a cut are counted once."""
        return int((self.stops - self.starts).sum()) - self.overlap * int((self.starts > 0).sum())


def pieces_of(
    documents: Sequence[Document], pieces: Sequence[PackedPiece], overlap: int, documents_per_row: int = 1
) -> list[Document]:
    """The documents of a pack, or their pieces, each with its own labels. Rows of several documents are never
    cut."""
    if documents_per_row > 1:
        firsts = (index * documents_per_row for index, _, _ in pieces)
        return [documents[number] for first in firsts for number in range(first, first + documents_per_row)]
    return [
        documents[index].part(start, stop, repeated=overlap if start else 0) for index, start, stop in pieces
    ]


def joined(documents: Sequence[Document]) -> Document:
    """The documents of a pack as one, in which each attends to those before it. Their first tokens have no
    label, as in the documents themselves."""
    if len(documents) == 1:
        return documents[0]
    token_ids: list[int] = []
    spans: list[WeightedSpan] = []
    for document in documents:
        shift = len(token_ids)
        spans += [(first + shift, end + shift, weight) for first, end, weight in document.spans]
        token_ids += document.token_ids
    place = " + ".join(document.place for document in documents)
    return Document(token_ids, tuple(spans), place, repeated=sum(document.repeated for document in documents))


def per_row(values: np.ndarray, documents_per_row: int) -> np.ndarray:
    """The sum of the values of each row's documents, which follow one another."""
    return values if documents_per_row == 1 else values.reshape(-1, documents_per_row).sum(axis=1)


PACKING = 0x7061636B
"""Separates the draws of packs from others with the same seed."""

Seed = int | tuple[int, ...]


def epoch_packs(
    lengths: np.ndarray,
    sources: np.ndarray,
    repeats: Sequence[float],
    epoch: int,
    *,
    capacity_tokens: int | None,
    split: bool,
    seed: int,
    overlap: int,
    shuffle: bool = True,
) -> Packs:
    """The packs of an epoch of rows with these lengths and sources, as data_prep.epoch.mixture draws and
    orders it."""
    order = epoch_rows(sources, repeats, seed, epoch, shuffle=shuffle)
    return pack_documents(
        lengths,
        order,
        (seed, epoch) if shuffle else None,
        capacity_tokens=capacity_tokens,
        split=split,
        overlap=overlap,
    )


def pack_documents(
    lengths: np.ndarray,
    order: np.ndarray,
    seed: Seed | None,
    *,
    capacity_tokens: int | None,
    split: bool,
    overlap: int,
) -> Packs:
    """The documents of `order` in packs: by pack, by pack_split, or, without a capacity, one document per
    pack; without a seed by pack_in_order in place of pack."""
    if capacity_tokens is None:
        return _whole(order, lengths, np.arange(len(order) + 1))
    if split:
        return pack_split(lengths, capacity_tokens, order, overlap)
    if seed is None:
        return pack_in_order(lengths, capacity_tokens, order)
    return pack(lengths, capacity_tokens, order, seed)


def pack(lengths: np.ndarray, capacity_tokens: int, order: np.ndarray, seed: Seed) -> Packs:
    """Best-fit decreasing: each document, longest first, goes into the fullest pack that still has room for
    it.

    `order` (N) are the documents to pack, each once or more often; the order of the packs is drawn with
    `seed`. No document is split: each must fit into a pack. Bins with a free size are found by the lowest set
    bit of one integer, so the time is that of sorting, O(N log N). Johnson 1974, "Fast algorithms for bin
    packing".
    """
    draw = np.random.default_rng([*np.atleast_1d(seed).tolist(), PACKING])
    shuffled = draw.permutation(order)
    descending = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity_tokens + 1)]  # the packs, by their free tokens
    rooms = 0  # bit r is set where with_room[r] has a pack
    for document, length in zip(descending.tolist(), lengths[descending].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
            bins[number].append(document)
        else:
            room, number = capacity_tokens, len(bins)
            bins.append([document])
        left = room - length
        if left:
            with_room[left].append(number)
            rooms |= 1 << left
    chosen = [bins[number] for number in draw.permutation(len(bins))]
    documents = np.fromiter((document for members in chosen for document in members), np.int64)
    return _whole(documents, lengths, np.cumsum([0, *map(len, chosen)]))


def pack_in_order(lengths: np.ndarray, capacity_tokens: int, order: np.ndarray) -> Packs:
    """Next fit: complete documents in this order, a new pack wherever the next one doesn't fit any more."""
    bounds, used = [0], 0
    for index, length in enumerate(lengths[order].tolist()):
        if used + length > capacity_tokens:
            bounds.append(index)
            used = 0
        used += length
    if len(order):
        bounds.append(len(order))
    return _whole(order, lengths, np.array(bounds))


def pack_split(lengths: np.ndarray, capacity_tokens: int, order: np.ndarray, overlap: int) -> Packs:
    """Documents end to end in this order, cut wherever a pack is full.

    Every pack except the last is full, or has room only for what a cut repeats.
    """
    pieces = list(_cut(lengths, capacity_tokens, order, overlap))
    if not pieces:
        return _whole(order, lengths, np.zeros(1, np.int64))
    documents, starts, stops, packs = (np.array(column, np.int64) for column in zip(*pieces, strict=True))
    bounds = np.searchsorted(packs, np.arange(packs[-1] + 2))
    return Packs(documents, starts, stops, bounds, overlap)


def _whole(documents: np.ndarray, lengths: np.ndarray, bounds: np.ndarray) -> Packs:
    return Packs(documents, np.zeros(len(documents), np.int64), lengths[documents], bounds)


def _cut(
    lengths: np.ndarray, capacity_tokens: int, order: np.ndarray, overlap: int
) -> Iterator[tuple[int, int, int, int]]:
    """Document, start, stop and number of the pack of each piece."""
    number, used = 0, 0
    for document in order.tolist():
        start, stop, length = 0, 0, int(lengths[document])
        while stop < length:
            room = capacity_tokens - used
            if room <= overlap and length - start > room:  # nothing would be learned there
                number, used = number + 1, 0
                continue
            stop = min(length, start + room)
            yield document, start, stop, number
            used += stop - start
            start = stop - overlap
            if used == capacity_tokens:
                number, used = number + 1, 0

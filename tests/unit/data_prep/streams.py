"""Streams over small files, for tests of streams and of what feeds on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep import DataSection, Document
from data_prep.epoch.stream import Buffer, Position, Stream

START = Position()
WORDS = ["blue", "lamp", "seven", "Ada"]


@dataclass(frozen=True)
class Files:
    """Makes streams over small JSONL files."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast

    def file(self, name: str, lines: Sequence[Any]) -> Path:
        """A file with these lines, each a text as it is or a row."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return path

    def rows(self, source: int, number: int) -> Path:
        """A file of alpaca rows of different lengths, which differ from those of every other source."""
        rows = [
            {"instruction": f"Say {row} for {source}.", "output": " ".join([WORDS[row % 4]] * (row % 7 + 1))}
            for row in range(number)
        ]
        return self.file(f"source-{source}-{number}.jsonl", rows)

    def section(self, paths: Sequence[Path], buffer_rows: int, **options: Any) -> DataSection:
        sources = [{"path": str(path), "format": "alpaca"} for path in paths]
        return DataSection.model_validate(
            {"train": sources, "max_length_tokens": 80, "streaming": {"buffer_rows": buffer_rows}} | options
        )

    def stream(self, sizes: Sequence[int], buffer_rows: int, *, seed: int = 0, **options: Any) -> Stream:
        """A stream of sources with so many rows each."""
        paths = [self.rows(source, number) for source, number in enumerate(sizes)]
        return Stream(self.section(paths, buffer_rows, **options), self.tokenizer, seed=seed)


def take(stream: Stream, number: int, start: Position = START) -> list[Buffer]:
    return list(islice(stream.buffers(start), number))


def documents(buffers: Sequence[Buffer]) -> list[Document]:
    return [document for buffer in buffers for members in buffer.packs for document in members]


def in_turn(sizes: Sequence[int]) -> list[str]:
    """The places of all rows, a row of each source in turn."""
    columns = [
        [f"source-{source}-{number}.jsonl:{row + 1}" for row in range(number)]
        for source, number in enumerate(sizes)
    ]
    return [place for places in zip_longest(*columns) for place in places if place is not None]


def passes(sizes: Sequence[int], buffer_rows: int) -> int:
    """How many buffers a pass has."""
    return -(-sum(sizes) // buffer_rows)


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=3)
BUFFER_ROWS = st.integers(1, 20)
PACKING = st.sampled_from([{}, {"pack_length_tokens": 80}, {"pack_length_tokens": 48, "pack_split": True}])

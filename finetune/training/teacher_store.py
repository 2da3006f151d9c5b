"""What a teacher says of every supervised token of a run's rows, asked before step 1 and kept in the cache.

A position's record is the teacher's k likeliest tokens, ln of their probabilities and of all others' together
at the run's temperature, and ln of the next token's at temperature 1. A store is a folder named by a hash of
all that determines it: the teacher's weights and arithmetic, k, the temperature, and the rows as tokens. It
is written a shard at a time, each whole or not there, so that a killed run continues where it was; several
processes make a share of the shards each.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data_prep.disk import make_private, read_json, write_private
from data_prep.table.cache import key_of, locked, writing
from data_prep.table.documents import Document
from finetune.data import teacher_cache
from finetune.engines.group import Group
from finetune.errors import CheckpointError
from finetune.models import sizes
from finetune.models.device import choose_device
from finetune.models.distillation import Likeliest, Teacher
from finetune.models.loss import LossInputs
from finetune.training.batches import evaluation_batches

logger = logging.getLogger(__name__)

VERSION = 1
"""Of what a store holds; part of its key."""
SHARD_TOKENS = 1 << 15
"""Tokens of the documents of a shard, at least: what a kill may lose."""
BATCH_TOKENS = 1 << 12
"""Tokens that the teacher reads at once, at most, but for a longer document. Always the same, so that what it
says depends neither on the recipe's batches nor on the number of processes."""
ENTRY = "entry.json"
"""Written last: the hash of all shards, and what the likeliest tokens hold."""
SECONDS_BETWEEN_LINES = 60.0
LITTLE_MASS = 0.9


@dataclass(frozen=True)
class TeacherQuery:
    """What a teacher is asked."""

    identity: dict[str, Any]
    """Of the teacher: all that its probabilities depend on."""
    top_k: int
    temperature: float
    vocabulary: int
    """Over how many tokens its distribution is: the first ones."""

    @property
    def record(self) -> np.dtype:
        """What is kept of a position."""
        return np.dtype(
            [("label", "<f4"), ("log_p", "<f4", (self.top_k + 1,)), ("tokens", "<i4", (self.top_k,))]
        )


class Answers(Protocol):
    """What answers."""

    def records(self, documents: Sequence[Document], query: TeacherQuery) -> np.ndarray:
        """The records of the documents' supervised positions, in their order."""


class LoadedTeacher:
    """A model that is loaded here."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher

    def records(self, documents: Sequence[Document], query: TeacherQuery) -> np.ndarray:
        """As the model computes them."""
        offsets = np.cumsum([0, *(document.supervised_tokens for document in documents)])
        rows = np.zeros(int(offsets[-1]), query.record)
        batches = evaluation_batches(
            documents, batch_size=len(documents), max_tokens=BATCH_TOKENS, pad_token_id=0, packed=True
        )
        for chosen, batch in batches:
            places = np.concatenate([np.arange(offsets[own], offsets[own + 1]) for own in chosen])
            for part, found in self._likeliest(batch, query):
                here = places[part]
                rows["label"][here] = found.label_log_p.float().cpu().numpy()
                rows["log_p"][here] = found.log_p.float().cpu().numpy()
                rows["tokens"][here] = found.tokens.cpu().numpy()
        return rows

    @torch.no_grad()
    def _likeliest(self, batch: dict[str, Any], query: TeacherQuery) -> Iterator[tuple[slice, Likeliest]]:
        """What the teacher says at a batch's supervised positions, a chunk of them at a time."""
        device = choose_device()
        tensors = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        read = {
            name: value
            for name, value in tensors.items()
            if name in ("input_ids", "attention_mask", "position_ids", "documents")
        }
        inputs = LossInputs(tensors["shift_labels"], tensors["input_ids"], lengths=batch.get("documents"))
        states, labels = inputs.at_supervised(self.teacher.states(read)), inputs.at_supervised(inputs.labels)
        for start in range(0, len(labels), sizes.CHUNK_POSITIONS):
            part = slice(start, start + sizes.CHUNK_POSITIONS)
            logits = self.teacher.head(states[part])[:, : query.vocabulary]
            yield part, Likeliest.of(logits, labels[part], query.top_k, query.temperature)


class TeacherStore:
    """What was said of a sequence of documents."""

    def __init__(self, documents: Sequence[Document], query: TeacherQuery):
        """Nothing is computed before `complete`."""
        self.documents, self.query = documents, query
        self.digest = ""
        """The SHA-256 of what all shards hold."""
        digest, lengths, counts = sha256(), [0], [0]
        for document in documents:
            spans = [bound for span in document.spans for bound in span[:2]]
            counted = len(document.token_ids), len(spans)
            digest.update(np.array([*counted, *document.token_ids, *spans], "<i8").tobytes())
            lengths.append(len(document.token_ids))
            counts.append(document.supervised_tokens)
        self.starts = np.cumsum(counts)
        """The positions before each document, and all of them (N + 1)."""
        # A document belongs to the shard in whose tokens it begins.
        numbers = np.cumsum(lengths)[:-1] // SHARD_TOKENS
        self.bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(documents)]
        """The first document of each shard, and the number of documents."""
        self.folder = teacher_cache() / key_of(
            {"version": VERSION, "documents": digest.hexdigest(), "shard": SHARD_TOKENS, **vars(query)}
        )
        self._held = list[np.ndarray]()
        """The shards, mapped: they stay where the cache is cleared meanwhile."""

    @property
    def shards(self) -> range:
        """Their numbers."""
        return range(len(self.bounds) - 1)

    def of(self, documents: Sequence[int]) -> dict[str, torch.Tensor]:
        """What goes into a batch of these documents: position_values (N x (k + 2): the label's ln, those of
        the likeliest tokens, that of all others), and position_tokens (N x k)."""
        if not documents:
            return {}
        rows = np.concatenate([self._records(number) for number in documents])
        return {
            "position_values": torch.from_numpy(np.column_stack([rows["label"], rows["log_p"]])),
            "position_tokens": torch.from_numpy(rows["tokens"].astype(np.int64)),
        }

    def _records(self, document: int) -> np.ndarray:
        shard = int(np.searchsorted(self.bounds, document, side="right")) - 1
        first = int(self.starts[self.bounds[shard]])
        start, stop = (int(self.starts[document + end]) - first for end in (0, 1))
        return self._held[shard][start:stop]

    # --- Making it

    def complete(self, what: str, load: Callable[[], Answers], group: Group) -> None:
        """Compute what isn't there; `load` gives the teacher where something is to be computed. All processes
        must call this. `what` the documents are is for messages."""
        entry = self._entry() if all(self._read(shard) is not None for shard in self.shards) else None
        if not group.any(entry is None):
            assert entry is not None  # noqa: S101 - no process lacks it
            self._take(what, entry)
            return
        with writing(teacher_cache()):
            make_private(self.folder)
            # Another run that asks the same is waited for.
            with locked(self.folder.with_suffix(".lock")) if group.is_main else nullcontext():
                self._compute(load, group)
            self._exchange(group)
        self._take(what, self._sealed())

    def _compute(self, load: Callable[[], Answers], group: Group) -> None:
        """This process's share of the shards that aren't there."""
        absent = [shard for shard in self.shards if self._read(shard) is None]
        mine = [shard for shard in absent if shard % group.world_size == group.rank]
        if not mine:
            return
        if there := len(self.shards) - len(absent):
            logger.info(f"of what the teacher says {there:,} of {len(self.shards):,} parts are there already")
        started = told = time.perf_counter()
        answers, done = load(), 0
        for shard in mine:
            content = BytesIO()
            np.save(content, self._said(answers, shard), allow_pickle=False)
            write_private(self._path(shard), content.getvalue())
            done += self.bounds[shard + 1] - self.bounds[shard]
            if time.perf_counter() - told > SECONDS_BETWEEN_LINES:
                told = time.perf_counter()
                logger.info(f"asking the teacher: {done:,} documents of {len(self.documents):,}")
        logger.info(f"asked the teacher about {done:,} documents in {time.perf_counter() - started:.1f} s")

    def _said(self, answers: Answers, shard: int) -> np.ndarray:
        """The records of a shard's documents."""
        first, end = self.bounds[shard], self.bounds[shard + 1]
        return answers.records([self.documents[number] for number in range(first, end)], self.query)

    def _exchange(self, group: Group) -> None:
        """Give one another the shards that machines without a common cache lack."""
        held = [shard for shard in self.shards if self._read(shard) is not None]
        holders = [set(json.loads(text)) for text in group.texts_of_all(json.dumps(held))]
        for shard in self.shards:
            if all(shard in own for own in holders):
                continue
            owner = next(rank for rank, own in enumerate(holders) if shard in own)
            mine = self._path(shard).read_bytes() if owner == group.rank else b""
            content = group.bytes_of(owner, mine)
            if shard not in holders[group.rank]:
                write_private(self._path(shard), content)
        group.wait()

    def _sealed(self) -> dict[str, Any]:
        """The entry of a complete store, which is written."""
        digest, held, least, little = sha256(), 0.0, 1.0, 0
        for shard in self.shards:
            rows = self._read(shard)
            assert rows is not None  # noqa: S101 - all were made, or given by others
            digest.update(rows.tobytes())
            mass = -np.expm1(rows["log_p"][:, -1].astype(np.float64))
            held, least = held + float(mass.sum()), min(least, float(mass.min(initial=1.0)))
            little += int((mass < LITTLE_MASS).sum())
        count = max(int(self.starts[-1]), 1)
        entry = {"sha256": digest.hexdigest(), "mass": held / count, "least": least, "little": little / count}
        write_private(self.folder / ENTRY, json.dumps(entry))
        return entry

    def _take(self, what: str, entry: dict[str, Any]) -> None:
        held = [self._read(shard) for shard in self.shards]
        self._held = [rows for rows in held if rows is not None]
        if len(self._held) < len(held):
            raise CheckpointError(
                f"{self.folder}: another process deletes what the teacher said; start this again."
            )
        self.digest = entry["sha256"]
        logger.info(
            f"teacher    of rows for {what} its likeliest {self.query.top_k:,} of {self.query.vocabulary:,} "
            f"tokens hold {entry['mass']:.2%} of its probability, in the mean of {int(self.starts[-1]):,} "
            f"positions; at least {entry['least']:.2%}, and less than {LITTLE_MASS:.0%} at "
            f"{entry['little']:.2%} of them"
        )

    # --- Files

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06}.npy"

    def _entry(self) -> dict[str, Any] | None:
        try:
            found = read_json(self.folder / ENTRY)
            return {"sha256": str(found["sha256"])} | {
                name: float(found[name]) for name in ("mass", "least", "little")
            }
        except (OSError, ValueError, KeyError, TypeError):  # it is made again
            return None

    def _read(self, shard: int) -> np.ndarray | None:
        """A shard, mapped; None where it isn't there, or isn't whole."""
        count = int(self.starts[self.bounds[shard + 1]] - self.starts[self.bounds[shard]])
        try:
            found: np.ndarray = np.load(self._path(shard), mmap_mode="r" if count else None)
        except (OSError, ValueError):
            return None
        return found if found.dtype == self.query.record and found.shape == (count,) else None

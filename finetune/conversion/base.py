"""What a tool's file in finetune/conversion/tools declares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, is_hub_id, local

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")


@dataclass(frozen=True)
class Tool:
    """One tool: how its files are known, what it does by default, and what the table of aliases can't say."""

    name: str
    """As in --from."""
    title: str
    marks: tuple[str, ...]
    """Keys that only this tool has, `section.*` for anything below a section."""
    convert: Callable[[Given, Draft], None]
    """Its data, and keys that mean something of their own; what it leaves goes through the table."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The tool's defaults where they may differ from ours, under its own keys."""
    covers: tuple[str, ...] = ()
    """Tools whose keys this one has as well."""
    verbs: tuple[str, ...] = ()
    """Trainers that --from may name behind the tool, where its files don't say which: --from "trl orpo"."""
    interpolates: bool = False
    """Whether ${key} in its files stands for another key of the file."""
    prepare: Callable[[Given], None] | None = None
    """Before defaults are added: defaults that depend on what is written."""

    def marks_in(self, given: Given) -> list[GivenKey]:
        """The keys of a file that mark it as this tool's."""
        return [
            entry
            for key, entry in given.entries.items()
            for mark in self.marks
            if key == mark
            or (mark.endswith(".*") and key.startswith(mark[:-1]))
            or (mark.startswith("*.") and key.rpartition(".")[2] == mark[2:])
        ]


TRAINER_DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "seed": 42,
    "save_steps": 500,
}
"""transformers' TrainingArguments, on which several tools build."""


def source(
    draft: Draft,
    place: str,
    entry: GivenKey,
    *,
    name: str | None = None,
    form: str = "auto",
    tell: bool = True,
    **more: Any,
) -> None:
    """A source of rows: a file of this machine or a data set of the hub, with what else is known of it.

    `place` is data.train.0 or data.evaluation.sources.0. With `tell` the entry has its line here.
    """
    text = str(entry.value if name is None else name).strip()
    where = local(text, draft.given)
    is_file = where.startswith(("/", "./", "../", "~")) or where.lower().endswith(DATA_SUFFIXES)
    if not text or (not is_file and not is_hub_id(text) and "/" in text):
        raise entry.refused(f"got {text!r}, expected a file, a folder or a data set of the hub (owner/name)")
    draft.put(f"{place}.{'path' if is_file else 'dataset'}", where if is_file else text, entry)
    for key in ("config", "split", "revision"):
        value = more.pop(key, None)
        if value is None or is_file or (key, value) == ("split", "train"):
            continue
        draft.put(f"{place}.{key}", value, draft.comment(entry))
    draft.put(f"{place}.format", form, draft.comment(entry))
    for key, value in more.items():
        if value not in (None, {}, [], ()):
            draft.put(f"{place}.{key}", value, draft.comment(entry))
    if tell:
        draft.carried(entry, place)


def take_all(draft: Draft, given: Given, *keys: str, how: str = "", ours: str = "") -> None:
    """Keys that were read along with others: carried, as part of what they say together."""
    for key in keys:
        entry = given.take(key)
        draft.carried(entry, ours, how)


def split_names(entry: GivenKey) -> list[str]:
    """Names separated by commas, or a list."""
    if isinstance(entry.value, list):
        return [str(name).strip() for name in entry.value]
    return [name.strip() for name in str(entry.value).split(",") if name.strip()]

"""The models that are served, by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.text import shown
from finetune.errors import FinetuneError
from finetune.generation.continuous import ContinuousBatch
from finetune.generation.request import Speaker
from finetune.generation.speakers import load_speakers
from finetune.models.device import choose_precision
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.runs.target import Target, base_of, resolve_target

NAMED = re.compile(r"(?P<name>[^/=]+)=(?P<path>.+)")
"""NAME=RUN_OR_MODEL."""
BASE = "base"


@dataclass(frozen=True)
class ServedModel:
    """What answers under a name."""

    name: str
    target: Target
    batch: ContinuousBatch
    speaker: Speaker
    max_new_tokens: int
    """The longest answer where a request doesn't say."""


def name_targets(
    texts: Sequence[str], base: str | None = None, *, with_base: bool = False
) -> dict[str, Target]:
    """What each RUN_OR_MODEL, or NAME=RUN_OR_MODEL, stands for. Without a name it has that of its folder, or
    its hub id. `with_base` is for what the first was trained from, too, as "base".

    Raises FinetuneError for none, two of one name, a classification head, and what resolve_target refuses.
    """
    if not texts:
        raise FinetuneError("no model is named: expected at least one to serve.")
    found: dict[str, Target] = {}
    for text in texts:
        named = NAMED.fullmatch(text) if not Path(text).exists() else None
        path = named["path"] if named else text
        target = resolve_target(path, base)
        name = named["name"] if named else _own_name(path, target)
        if target.model.classifies:
            raise FinetuneError(
                f"{target.description} has a classification head and writes no text: it can't be served."
            )
        if name in found or (with_base and name == BASE):
            raise FinetuneError(f"two models have the name {shown(name)}: give one another, NAME={path}.")
        found[name] = target
    if with_base:
        found[BASE] = base_of(next(iter(found.values())))
    return found


def load_models(targets: dict[str, Target], *, rows: int) -> dict[str, ServedModel]:
    """Load them; a base that some share is in memory once, and answers `rows` requests at a time.

    Raises ModelError or DataError where a part can't be loaded.
    """
    dtype = choose_precision("auto").dtype
    loaded = load_speakers(list(targets.values()), dtype=dtype, rows=rows)
    return {
        name: ServedModel(name, target, batch, speaker, _longest_answer(target))
        for (name, target), (batch, speaker) in zip(targets.items(), loaded, strict=True)
    }


def _own_name(path: str, target: Target) -> str:
    if target.run is not None and Path(path).resolve() in (target.run, target.run / "adapter"):
        return target.run.name
    return Path(path).resolve().name if Path(path).expanduser().exists() else path


def _longest_answer(target: Target) -> int:
    options = target.recipe.evaluate if target.recipe is not None else EvaluateSection()
    return options.max_new_tokens

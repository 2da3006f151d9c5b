"""Two runs side by side: their metrics, and everything recorded that could explain the difference, most
likely first."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.recipe.load import leaves
from finetune.recipe.lock import Lock
from finetune.recipe.reading.tree import dotted
from finetune.recipe.schema import Recipe

METRICS = (
    "evaluation_loss", "evaluation_loss_before", "train_loss", "best_step", "steps", "tokens",
    "supervised_tokens", "seconds", "tokens_per_second", "peak_memory_bytes", "status",
)  # fmt: skip

FINAL = "final/"
"""What stands before the names of the metrics that were measured of the result."""

UNROUNDED_LOSS = f"{FINAL}evaluation_loss"
"""The result's evaluation loss with the base as it was loaded, where training had it in FP8
(train.base_arithmetic): that of the merged model."""

GROUPS = (
    ("base", "different base weights"),
    ("data", "different data"),
    ("tokenizer", "different tokenizer"),
    ("template", "different chat template"),
    ("recipe", "different recipe"),
    ("rules", "rules of different versions: the same recipe is carried out differently"),
    ("seed", "different seed: other batches, another start of the adapter"),
    ("code", "the toolkit or the code beside it changed"),
    ("versions", "packages changed"),
    ("device", "different machine, or number of threads or processes: different rounding"),
)
"""What can explain a difference, most likely first."""

WITHOUT_EFFECT = (
    "output.",
    "sweep",
    "tracking.",
    "train.log_every",
    "train.keep_checkpoints",
    "train.save_every",
)
"""Recipe values that change no number of a run."""

MOST_NAMED = 5
"""Keys in which two recipes differ."""


@dataclass(frozen=True)
class Difference:
    """One recorded value in which two runs differ."""

    group: str
    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """Two runs."""

    metrics: dict[str, tuple[Any, Any]]
    differences: list[Difference]
    """In the order of GROUPS."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "differences": [vars(difference) for difference in self.differences],
        }


def compare(first: Lock, second: Lock, summaries: tuple[dict[str, Any], dict[str, Any]]) -> Comparison:
    """What differs between two runs."""
    final = [name for name in {**summaries[0], **summaries[1]} if name.startswith(FINAL)]
    metrics = {name: (summaries[0].get(name), summaries[1].get(name)) for name in (*final, *METRICS)}
    order = [group for group, _ in GROUPS]
    found = sorted(_differences(first, second), key=lambda difference: order.index(difference.group))
    return Comparison(metrics, found)


def refuse_another_recipe(run: Path, lock: Lock, recipe: Recipe) -> None:
    """Raises CheckpointError where a run was started with another recipe than this, naming what differs."""
    if recipe == lock.recipe:
        return
    then, now = (dict(flattened(one.model_dump(mode="json"))) for one in (lock.recipe, recipe))
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    raise CheckpointError(
        f"the recipe differs from the one that {run} was started with, in "
        f"{', '.join(names[:MOST_NAMED])}{more}. Leave it out (finetune train --resume RUN goes by the run's "
        "own), change it back, or start a new run."
    )


def is_metric(name: str) -> bool:
    """Whether a value of a summary says how a run came out."""
    return name in METRICS or name.startswith(FINAL)


def _differences(first: Lock, second: Lock) -> Iterator[Difference]:
    pairs: list[tuple[str, str, Any, Any]] = [
        ("tokenizer", "tokenizer", first.tokenizer_sha256, second.tokenizer_sha256),
        ("template", "template", first.template_sha256, second.template_sha256),
    ]
    for group, one, other in (
        ("base", first.base, second.base),
        ("data", first.data, second.data),
        ("code", first.git, second.git),
        ("versions", first.versions, second.versions),
        ("device", first.device, second.device),
        ("rules", vars(first.rules), vars(second.rules)),
    ):
        pairs += [(group, name, one.get(name), other.get(name)) for name in {**one, **other}]
    recipes = [dict(flattened(lock.recipe.model_dump(mode="json"))) for lock in (first, second)]
    pairs += [
        ("recipe", name, recipes[0].get(name), recipes[1].get(name)) for name in {**recipes[0], **recipes[1]}
    ]
    for group, name, one, other in pairs:
        if one != other and not (group == "recipe" and name.startswith(WITHOUT_EFFECT)):
            kind = (
                "seed"
                if name == "train.seed"
                else "code"
                if (group, name) == ("versions", "finetune")
                else group
            )
            yield Difference(kind, name, one, other)


def flattened(value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of each leaf of plain values; see finetune.recipe.load.leaves."""
    for location in leaves(value):
        leaf = value
        for key in location:
            leaf = leaf[key]
        yield dotted(location), leaf

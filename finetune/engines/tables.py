"""Tables about the engines, for people: what `finetune doctor --matrix` prints, and those of the manual.

Torch-free; finetune/manual.py writes those of the manual.
"""

from collections.abc import Callable

from data_prep.text import markdown_table
from finetune.engines import registry
from finetune.engines.base import FP16, METHODS, Engine, Method, Refusal

PARTS = {"states": "optimizer state", "gradients": "gradients", "weights": "weights"}


def matrix() -> dict[Method, dict[str, Refusal | None]]:
    """Method -> engine of several processes -> why the two don't go together in fp32 and bf16; None where
    they do."""
    engines = registry.of_several()
    return {method: {engine.name: engine.refusal(method, "bf16") for engine in engines} for method in METHODS}


def reasons() -> list[str]:
    """All that the matrix has, once each, and why no engine trains in fp16."""
    found = (why.reason for row in matrix().values() for why in row.values() if why is not None)
    return [*dict.fromkeys((*found, FP16.reason))]


def matrix_table() -> str:
    """The matrix, with its reasons below."""
    rows = [
        [method, *("works" if why is None else "-" for why in row.values())]
        for method, row in matrix().items()
    ]
    table = markdown_table(["", *(f"`{engine.name}`" for engine in registry.of_several())], rows)
    return "\n".join([table, "", *(f"- {reason}" for reason in reasons())])


def guide_table() -> str:
    """A line for each file of accelerate_configs."""
    rows = [
        [f"`{guide.file}`", _sharded(engine, guide.remark), guide.when, guide.not_for]
        for engine in registry.ENGINES
        for guide in engine.guides
    ]
    return markdown_table(["", "sharded", "take it when", "it can't"], rows)


def memory_table() -> str:
    """Bytes of one process, in letters that the page explains."""
    rows = []
    for engine in registry.of_several():
        if engine.offloads:
            continue
        weights = f"(b P + 4 A) / N + {engine.gathered_words}" if engine.shards_weights else "b P + 4 A"
        gradients, states = ("gradients" in engine.shards, "states" in engine.shards)
        rows.append([engine.name, weights, f"4 A{' / N' * gradients}", f"8 A{' / N' * states}", "X"])
    return markdown_table(["", "weights", "gradients", "optimizer (AdamW)", "activations"], rows)


def _sharded(engine: Engine, remark: str) -> str:
    parts = ", ".join(words for part, words in PARTS.items() if part in engine.shards) or "nothing"
    return f"{parts}; {remark}" if remark else parts


TABLES: dict[str, Callable[[], str]] = {"matrix": matrix_table, "guide": guide_table, "memory": memory_table}
"""The name in a page's marks -> what is between them."""

"""torchtune's lora_dpo and full_dpo recipes: their losses, reference and columns."""

from collections.abc import Mapping
from typing import Any

from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, number
from finetune.conversion.preference import refused

LOSSES: Mapping[str, tuple[str, Mapping[str, tuple[str, float]]]] = {
    "DPOLoss": ("dpo", {"beta": ("beta", 0.1), "label_smoothing": ("label_smoothing", 0.0)}),
    "RSOLoss": ("hinge", {"gamma": ("beta", 0.1)}),
    "SimPOLoss": (
        "simpo",
        {"beta": ("beta", 2.0), "gamma": ("margin", 0.5), "label_smoothing": ("label_smoothing", 0.0)},
    ),
}
"""Our kind for a loss, and our key and their default for each of its arguments."""
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "stack_exchange_paired_dataset": {
        "prompt": "question",
        "chosen": "response_j",
        "rejected": "response_k",
    },
}
"""Columns that a builder reads where the file maps none."""


def objective(given: Given, draft: Draft) -> None:
    """The loss. Raises ConvertError for one that isn't here."""
    loss = given.get("loss._component_")
    if loss is None or any(word in str(loss.value) for word in ("CrossEntropy", "CEWith")):
        return
    given.take("loss._component_")
    name = str(loss.value).rpartition(".")[2]
    if name not in LOSSES:
        raise refused(loss, name)
    kind, arguments = LOSSES[name]
    draft.carry(loss, "objective.kind", kind)
    for argument, (ours, default) in arguments.items():
        key = f"loss.{argument}"
        entry = given.take(key) or GivenKey(key, default, given.shown)
        draft.carry(entry, f"objective.{ours}", number(entry))
    _reference(given, draft)


def _reference(given: Given, draft: Draft) -> None:
    """full_dpo loads the reference by itself; lora_dpo has the base without its adapter."""
    folder = given.get("ref_checkpointer.checkpoint_dir")
    same = folder is None or folder.value == given.value("checkpointer.checkpoint_dir")
    for entry in given.take_below("ref_checkpointer"):
        if entry is folder and not same:
            how = f"the reference is the model as it is at the start, and not {entry.value}"
            draft.drop(entry, how)
        else:
            draft.carried(entry, "objective.reference", "the model as it is at the start")


def columns(name: str, values: Mapping[str, GivenKey | None]) -> dict[str, Any]:
    """What a data set of pairs calls its columns."""
    mapped = {
        ours: str(entry.value)
        for ours in ("prompt", "chosen", "rejected")
        if (entry := values[f"column_map.{ours}"]) is not None
    }
    found = mapped or COLUMNS.get(name, {})
    return {"columns": {ours: theirs for ours, theirs in found.items() if ours != theirs}}

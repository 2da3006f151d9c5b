"""How often: evaluating, saving, logging."""

from typing import Any

from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, number, shown, whole


def _every(entry: GivenKey) -> Any:
    """How often: steps, or a part of all steps."""
    amount = number(entry)
    if entry.key.rpartition(".")[2].endswith("_per_epoch"):
        return "1 epoch" if amount == 1 else f"{1 / amount:.3g} epochs"
    if entry.key.rpartition(".")[2] == "save_epochs":
        return "1 epoch" if amount == 1 else f"{amount:g} epochs"
    return f"{amount * 100:g}%" if amount < 1 else whole(entry)


def _when(draft: Draft, what: str, path: str) -> None:
    steps, when = draft.notes.pop(f"{what}_every", None), draft.notes.pop(f"{what}_when", None)
    word = None if when is None else str(when.value).lower()
    if word == "true" or (when is not None and when.key == "do_eval"):
        word = None if when is not None and not when.off else "no"
    if word in ("no", "false", "never", "none", "0"):
        if what == "save":
            draft.put(path, "never", when or "no checkpoints")
        for entry in (when, steps):
            draft.carried(entry, path, "never, but at the end")
        return
    if when is not None and when.key.endswith("save_epochs"):
        draft.put(path, _every(when), when)
    elif word in ("epoch", "best"):
        draft.put(path, "1 epoch", when or "")
    elif when is not None and word not in (None, "steps", "true"):
        raise when.refused(f"got {shown(when.value)}, expected no, steps or epoch")
    elif steps is not None and not steps.off:
        draft.put(path, _every(steps), steps)
    for entry in (when, steps):
        if entry is not None:
            draft.carried(entry, path, "at the end" if entry.off else "")


def times(draft: Draft) -> None:
    """How often it is evaluated, saved and logged; never evaluated without rows to evaluate on."""
    _when(draft, "evaluate", "train.evaluate_every")
    _when(draft, "save", "train.save_every")
    entry = draft.notes.pop("log_every", None)
    if entry is not None and not entry.off:
        draft.carry(entry, "train.log_every", _every(entry))
    elif entry is not None:
        draft.carried(entry, "train.log_every")
    if not any(path.startswith("data.evaluation") for path in draft.values):
        if "train.evaluate_every" in draft.values:
            draft.remove("train.evaluate_every")
        for path in ("train.early_stopping", "train.best_by"):
            draft.remove(path)
        draft.notes.pop("best", None)
        metric = draft.notes.pop("best_metric", None)
        draft.carried(metric, "", "no rows to evaluate on")

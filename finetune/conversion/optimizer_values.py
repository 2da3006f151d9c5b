"""What an optimizer takes of Adam's numbers, and what switches of precision mean together."""

from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, number
from finetune.recipe.schema.optimizers import Knob, known_optimizer

SCHEDULE_FREE = "schedule_free_adamw"


def takes(optimizer: str, knob: Knob) -> bool:
    """Whether an optimizer of a recipe takes Adam's betas, or its epsilon."""
    known = known_optimizer(optimizer)
    return known is None or knob in known.knobs


def betas(draft: Draft) -> None:
    """Adam's betas, one list here; they and epsilon are left out where the optimizer has none."""
    both, first, second = (draft.notes.pop(name, None) for name in ("betas", "beta1", "beta2"))
    optimizer = draft.value("train.optimizer", "adamw")
    if not takes(optimizer, "epsilon"):
        draft.remove("train.adam_epsilon")
    if not takes(optimizer, "betas"):
        for entry in (both, first, second):
            draft.carried(entry, "", "the optimizer has none")
        draft.remove("train.adam_betas")
    elif both is not None:
        if not isinstance(both.value, list) or len(both.value) != 2:
            raise both.refused(f"got {both.value!r}, expected two numbers")
        draft.carry(both, "train.adam_betas", [float(value) for value in both.value])
    elif first is not None or second is not None:
        values = [_beta(first, 0.9), _beta(second, 0.999)]
        for entry in (first, second):
            if entry is not None:
                draft.carry(entry, "train.adam_betas", values)


def schedule_free(draft: Draft) -> None:
    """The optimizer that averages weights goes with a constant schedule here."""
    entry, schedule = draft.notes.get("optimizer"), draft.value("train.schedule", "cosine")
    if entry is None or draft.value("train.optimizer") != SCHEDULE_FREE or schedule == "constant":
        return
    draft.remove("train.optimizer")
    draft.lines[:] = [line for line in draft.lines if line.key != entry.key]
    draft.drop(entry, f"{SCHEDULE_FREE} averages in place of a decay, and the schedule is {schedule}: adamw")


def _beta(entry: GivenKey | None, default: float) -> float:
    return number(entry) if entry is not None and entry.value is not None else default


def precision(draft: Draft) -> None:
    """bf16: false without anything else is float32; LLaMA-Factory takes the base's own type then."""
    entry = draft.notes.pop("not_bf16", None)
    if entry is None:
        return
    if "train.precision" in draft.values or entry.value is not False:
        draft.carried(entry, "train.precision", "not bf16")
    elif draft.title.startswith("LLaMA-Factory"):
        draft.carried(entry, "train.precision", "the base's own type")
    else:
        draft.carry(entry, "train.precision", "fp32")

"""Stages dpo, kto and rm of LLaMA-Factory, old and v1: losses, reference, and the columns of their rows."""

from collections.abc import Mapping
from typing import Any

from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, local, name_list, number, whole
from finetune.conversion.judged import REWARD, kto, reward
from finetune.conversion.preference import (
    asked,
    continued,
    has_reference,
    margin,
    per_token,
    refused,
    without_dropout,
)

KEYS: Mapping[str, Any] = {
    "pref_loss": "sigmoid",
    "pref_beta": 0.1,
    "pref_ftx": 0.0,
    "dpo_label_smoothing": 0.0,
    "simpo_gamma": 0.5,
    "pref_bco_weight": 0.0,
}
"""What it reads, with its defaults."""
KTO: Mapping[str, Any] = {
    "beta": 0.1,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}
KTO_NAMES = {
    "beta": "pref_beta",
    "desirable_weight": "kto_chosen_weight",
    "undesirable_weight": "kto_rejected_weight",
}
REFERENCE = ("ref_model", "ref_model_adapters", "ref_model_quantization_bit")
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "system": "system"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "messages": {"messages": "prompt", "system": "system", "tools": "tools"},
}
"""Columns of rows of pairs, under our names for them."""
JUDGED = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "messages": {"messages": "messages", "system": "system", "tools": "tools"},
}
"""Columns of rows of judged answers."""


def objective(given: Given, draft: Draft, *, keeps_dropout: bool) -> None:
    """The loss and its numbers. `keeps_dropout`: v1's trainer doesn't switch it off."""
    said = asked(given, draft, KEYS)
    loss, beta, smoothing = said["pref_loss"], said["pref_beta"], said["dpo_label_smoothing"]
    name = str(loss.value)
    if name not in LOSSES:
        raise refused(loss, name)
    if number(said["pref_bco_weight"]):
        raise refused(said["pref_bco_weight"], f"{name} + bco")
    draft.carried(said["pref_bco_weight"], "", "off there")
    kind = LOSSES[name]
    draft.put("objective.kind", kind, loss)
    if kind == "ipo":
        per_token(draft, loss, kind)
    else:
        draft.carried(loss, "objective.kind")
    strength = "objective.odds_weight" if kind == "orpo" else "objective.beta"
    draft.carry(beta, strength, number(beta))
    margin(draft, said["simpo_gamma"], kind)
    if kind == "dpo":
        draft.carry(smoothing, "objective.label_smoothing", number(smoothing))
    else:
        draft.carried(smoothing, "", f"{name} has none")
    _beside(draft, said["pref_ftx"], kind)
    _reference(given, draft)
    if not keeps_dropout:
        without_dropout(given, draft, "lora_dropout")
    for key in ("train_on_prompt", "mask_history"):
        draft.carried(given.take(key), "objective.kind", "pairs are compared by their answers alone")


def _beside(draft: Draft, weight: GivenKey, kind: str) -> None:
    """pref_ftx: the chosen answers' cross-entropies per token, of which the mean is taken, as here."""
    if kind == "orpo":
        if number(weight):
            draft.drop(weight, "orpo learns the chosen answer with weight 1, and no more beside it")
        else:
            draft.carried(weight, "objective.kind", "orpo's own cross-entropy alone")
    else:
        draft.carry(weight, "objective.supervised_weight", number(weight))


def _reference(given: Given, draft: Draft) -> None:
    """The base without an adapter, unless another is named."""
    model, adapters, bits = (given.take(key) for key in REFERENCE)
    start = given.get("adapter_name_or_path")
    starts_at = None if start is None or start.off else start.value
    if model is None or model.off or not has_reference(draft):
        for entry in (model, adapters, bits):
            draft.carried(entry, "objective.reference", "none is named")
        continued(given, draft, "adapter_name_or_path")
        return
    over = None if adapters is None or adapters.off else adapters.value
    same = model.value == given.value("model_name_or_path")
    if same and over == starts_at:
        for entry in (model, adapters):
            draft.carried(entry, "objective.reference", "the model as it is at the start")
    elif same and over is None:
        draft.carried(model, "objective.reference")
        continued(given, draft, "adapter_name_or_path")
    elif same and adapters is not None and len(name_list(adapters)) == 1:
        draft.carried(model, "objective.reference")
        draft.carry(adapters, "objective.reference", local(name_list(adapters)[0], given))
    else:
        what = f"{model.value}{f' with {over}' if over else ''}"
        draft.drop(model, f"the reference is the model as it is at the start, and not {what}")
        draft.carried(adapters, "objective.reference")
    held = given.value("quantization_bit")
    if bits is None or bits.off or (held and whole(bits) == held):
        draft.carried(bits, "objective.reference")
    else:
        draft.otherwise(bits, "the reference is held as the model is", "objective.reference", changes=True)


def judged(given: Given, draft: Draft, stage: GivenKey) -> None:
    """Stage kto, whose supervised part isn't here."""
    kto(draft, asked(given, draft, KTO, KTO_NAMES), stage)
    beside = given.take("pref_ftx")
    if beside is not None and not beside.off:
        draft.drop(beside, "kto has no cross-entropy beside it")
    else:
        draft.carried(beside, "objective.kind")
    _reference(given, draft)
    without_dropout(given, draft, "lora_dropout")


def reward_model(given: Given, draft: Draft, stage: GivenKey) -> None:
    """Stage rm, whose head is TRL's value head."""
    reward(draft, asked(given, draft, REWARD), None)
    how = "the head is a matrix; there it has a bias, and dropout of 0.1 before it"
    draft.otherwise(stage, how, "objective.kind", changes=True)


def columns_of(form: str, asks: str, columns: Mapping[str, str]) -> dict[str, str]:
    """How the columns that dataset_info.json names for rows of pairs, or of judged answers, are called by
    format preference, or feedback."""
    if asks == "feedback":
        ours = {**JUDGED.get(form, {}), "kto_tag": "label"}
    else:
        ours = {**COLUMNS.get(form, {}), "chosen": "chosen", "rejected": "rejected"}
    return {
        ours[name]: column
        for name, column in columns.items()
        if column and name in ours and ours[name] != column
    }

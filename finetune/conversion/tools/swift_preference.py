"""`swift rlhf`: which of TRL's trainers it is, with ms-swift's own defaults and reference."""

from collections.abc import Mapping
from typing import Any

from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, local, name_list, number, truth
from finetune.conversion.judged import KTO, REWARD, kto, reward
from finetune.conversion.preference import (
    CPO,
    DPO,
    ORPO,
    asked,
    continued,
    cpo,
    dpo,
    has_reference,
    orpo,
    refused,
    without_dropout,
)
from finetune.conversion.shell import VERB

SWIFT_CPO: Mapping[str, Any] = {**CPO, "simpo_gamma": 1.0}
SIMPO: Mapping[str, Any] = {**SWIFT_CPO, "beta": 2.0, "loss_type": "simpo"}
"""Its defaults where they differ from TRL's."""


def objective(given: Given, draft: Draft) -> str:
    """What rlhf_type asks for: the format of its rows, empty where this is no `swift rlhf`. Raises
    ConvertError for what isn't here."""
    kind = given.take("rlhf_type")
    if kind is None and given.environment.get(VERB) != "rlhf":
        return ""
    name = "dpo" if kind is None else str(kind.value)
    if name == "dpo":
        dpo(draft, asked(given, draft, DPO), smooths=True)
    elif name == "orpo":
        orpo(draft, asked(given, draft, ORPO), kind, learns_prompts=False)
    elif name in ("cpo", "simpo"):
        cpo(draft, asked(given, draft, SIMPO if name == "simpo" else SWIFT_CPO), kind)
    elif name == "kto":
        kto(draft, asked(given, draft, KTO), kind)
    elif name == "rm":
        reward(draft, asked(given, draft, REWARD), kind)
    else:
        raise refused(kind or given, name)
    if name == "dpo":
        draft.carried(kind, "objective.kind")
    without_dropout(given, draft, "lora_dropout")
    _reference(given, draft)
    _packs(given, draft)
    return "feedback" if name == "kto" else "preference"


def _reference(given: Given, draft: Draft) -> None:
    """With an adapter the base without it, unless ref_adapters names where it starts."""
    model, adapters = given.take("ref_model"), given.take("ref_adapters")
    start = given.get("adapters")
    if adapters is not None and not adapters.off:
        if start is not None and name_list(start) == name_list(adapters):
            draft.carried(adapters, "objective.reference", "the adapter as it is at the start")
        else:
            names = name_list(adapters)
            if len(names) == 1:
                draft.carry(adapters, "objective.reference", local(names[0], given))
            else:
                draft.drop(adapters, "the reference is one adapter")
    else:
        draft.carried(adapters, "objective.reference")
        continued(given, draft, "adapters")
    if model is None or model.off or model.value == given.value("model") or not has_reference(draft):
        draft.carried(model, "objective.reference", "the model as it is at the start")
    else:
        draft.drop(model, f"the reference is the model as it is at the start, and not {model.value}")


def _packs(given: Given, draft: Draft) -> None:
    """Packs hold complete pairs, both of whose answers may have the full length."""
    packing, length = given.take("packing"), given.take("packing_length")
    size = length if length is not None and not length.off else given.get("max_length")
    if packing is None or not truth(packing) or size is None or size.off:
        for entry in (packing, length):
            draft.carried(entry, "data.pack_length_tokens", "rows are padded")
        return
    needed = 2 * int(number(_longest(given, size)))
    draft.put("data.pack_length_tokens", max(int(number(size)), needed), packing)
    how = "a pack has room for two answers of max_length, so that a batch may hold other pairs"
    draft.otherwise(packing, how, "data.pack_length_tokens", changes=True)
    draft.carried(length, "data.pack_length_tokens")


def _longest(given: Given, size: GivenKey) -> GivenKey:
    longest = given.get("max_length")
    return size if longest is None or longest.off else longest

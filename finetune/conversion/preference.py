"""Learning from preferences: which of our objectives a file asks for, and with which numbers.

Several tools train by TRL's trainers, or by copies of them. What is said under TRL's names is put together
here; a tool's own file says what it calls them and where its formulas differ. Formulas are those of TRL 1.x,
and of 0.x where a key is gone since.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune import objectives
from finetune.conversion.draft import Draft
from finetune.conversion.given import ConvertError, Given, GivenKey, local, name_list, number, truth

Asked = Mapping[str, GivenKey]
"""What a file says, or its tool's default, by TRL's names."""

DPO: Mapping[str, Any] = {
    "beta": 0.1,
    "loss_type": "sigmoid",
    "loss_weights": None,
    "label_smoothing": 0.0,
    "rpo_alpha": None,
    "reference_free": False,
}
ORPO: Mapping[str, Any] = {"beta": 0.1}
CPO: Mapping[str, Any] = {
    "beta": 0.1,
    "loss_type": "sigmoid",
    "label_smoothing": 0.0,
    "cpo_alpha": 1.0,
    "simpo_gamma": 0.5,
    "alpha": 0.0,
}
"""The keys of TRL's trainers, with their defaults."""
DPO_LOSSES = {
    "sigmoid": ("dpo", False),
    "hinge": ("hinge", False),
    "ipo": ("ipo", True),
    "robust": ("robust", False),
    "sigmoid_norm": ("dpo", True),
}
"""Our kind for a loss of DPOTrainer, and whether its log-ratios are per token."""
CPO_LOSSES = {"sigmoid": "cpo", "hinge": "hinge", "ipo": "ipo", "simpo": "simpo", "alphapo": "simpo"}
"""Our kind for a loss of CPOTrainer."""


def kinds() -> list[str]:
    """The objectives that a recipe can name."""
    return list(dict.fromkeys(objective.kind for objective in objectives.OBJECTIVES))


def refused(place: Given | GivenKey, name: str) -> ConvertError:
    """The error for an objective that isn't here: which are, and which of them is nearest."""
    nearest = objectives.nearest_to(name) or "dpo"
    own = name.lower()
    if own in kinds():
        return place.refused(f"files of {name} are not converted: write objective.kind: {own} by hand")
    return place.refused(
        f"{name} is none of the objectives here ({', '.join(kinds())}); the nearest is {nearest}"
    )


def asked(
    given: Given, draft: Draft, defaults: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> Asked:
    """The keys of a trainer, now taken; `names` are the tool's own where they aren't TRL's."""
    found: dict[str, GivenKey] = {}
    for name, default in defaults.items():
        key = (names or {}).get(name, name)
        entry = given.take(key)
        if entry is not None and entry.value is None:
            draft.carried(entry, "objective", "not set there")
            entry = None
        found[name] = entry if entry is not None else GivenKey(key, default, given.shown)
    return found


def dpo(draft: Draft, said: Asked, *, smooths: bool) -> None:
    """DPOTrainer. `smooths`: loss sigmoid reads label_smoothing, as TRL does before 0.29."""
    loss, beta, smoothing = said["loss_type"], said["beta"], said["label_smoothing"]
    name, scale, beside = _one_loss(loss, said["loss_weights"])
    if name not in DPO_LOSSES:
        raise refused(loss, name)
    kind, by_length = DPO_LOSSES[name]
    draft.put("objective.kind", kind, loss)
    if by_length:
        per_token(draft, loss, kind)
    else:
        draft.carried(loss, "objective.kind")
    draft.carry(beta, "objective.beta", number(beta))
    if name == "robust":
        draft.carry(smoothing, "objective.label_smoothing", number(smoothing))
    elif smoothing.off or name != "sigmoid":
        draft.carried(smoothing, "", "" if smoothing.off else f"loss {name} doesn't read it")
    elif smooths:
        draft.carry(smoothing, "objective.label_smoothing", number(smoothing))
    else:
        draft.put("objective.label_smoothing", number(smoothing), smoothing)
        how = "TRL reads it with loss sigmoid before 0.29, and from then on doesn't"
        draft.otherwise(smoothing, how, "objective.label_smoothing", changes=True)
    _reference_free(draft, said["reference_free"])
    _weights(draft, said, scale, beside)


def per_token(draft: Draft, entry: GivenKey, kind: str) -> None:
    """Log-ratios are divided by the answers' lengths there, which our key says."""
    draft.put("objective.length_normalized", True, f"{draft.comment(entry)}: log-ratios are per token there")
    if kind == "ipo":
        how = "length_normalized: true is their form of it; the paper's sums log-ratios"
        draft.otherwise(entry, how, "objective.length_normalized")
    else:
        draft.carried(entry, "objective.length_normalized")


def _one_loss(loss: GivenKey, weights: GivenKey) -> tuple[str, float, float]:
    """The one preference loss, its weight, and that of `sft` beside it."""
    names = [name.strip("[]'\"") for name in name_list(loss)]
    listed = weights.value if isinstance(weights.value, list) else str(weights.value or "").split(",")
    numbers = [number(replace(weights, value=value)) for value in listed if weights.value is not None]
    numbers = numbers or [1.0] * len(names)
    if len(numbers) != len(names):
        raise weights.refused(f"got {len(numbers)} weights for {len(names)} losses ({', '.join(names)})")
    both = list(zip(names, numbers, strict=True))
    preference = [(name, weight) for name, weight in both if name != "sft"]
    if len(preference) != 1 or preference[0][1] <= 0:
        raise refused(loss, " + ".join(names))
    return *preference[0], sum(weight for name, weight in both if name == "sft")


def _weights(draft: Draft, said: Asked, scale: float, beside: float) -> None:
    """The chosen answer's cross-entropy beside the loss: of `sft` among the losses, and of RPO."""
    loss, weights, rpo = said["loss_type"], said["loss_weights"], said["rpo_alpha"]
    if scale != 1:
        how = f"the whole loss is divided by {scale:g}: clipping by max_gradient_norm sees other gradients"
        draft.otherwise(weights, how, "objective.supervised_weight", changes=True)
    else:
        draft.carried(weights, "objective.supervised_weight")
    if rpo.value is not None and number(rpo):
        draft.put("objective.supervised_weight", (beside + number(rpo)) / scale, rpo)
        draft.note("mean_over_tokens", rpo)
    else:
        draft.carried(rpo, "objective.supervised_weight", "0")
        if beside:
            draft.put("objective.supervised_weight", beside / scale, f"{draft.comment(loss)}: sft")
            draft.note("mean_over_tokens", loss)


def _reference_free(draft: Draft, entry: GivenKey) -> None:
    if truth(entry):
        draft.carry(entry, "objective.reference", "none")
    else:
        draft.carried(entry, "objective.reference")


def orpo(draft: Draft, said: Asked, by: GivenKey | None, *, learns_prompts: bool) -> None:
    """ORPOTrainer; `by` is the key that asks for it. `learns_prompts`: its cross-entropy is that of prompt
    and answer."""
    weight = said["beta"]
    draft.put("objective.kind", "orpo", by or f"{draft.title}'s ORPO")
    draft.put("objective.odds_weight", number(weight), weight)
    draft.put("objective.learns_prompt", learns_prompts, by or weight)
    draft.note("mean_over_tokens", by or weight)
    if by is not None:
        draft.carried(weight, "objective.odds_weight")


def cpo(draft: Draft, said: Asked, by: GivenKey | None = None) -> None:
    """CPOTrainer, which is SimPO's as well; `by` is a key that asks for it beside loss_type."""
    loss, weight, gamma = said["loss_type"], said["cpo_alpha"], said["simpo_gamma"]
    name = str(loss.value)
    if name not in CPO_LOSSES:
        raise refused(loss, name)
    if number(said["alpha"]):
        raise refused(said["alpha"], "alphapo")
    kind = CPO_LOSSES[name]
    draft.put("objective.kind", kind, loss if loss.written or by is None else by)
    draft.carried(by, "objective.kind")
    draft.carried(said["alpha"], "", "0, as here")
    draft.carry(said["beta"], "objective.beta", number(said["beta"]))
    if kind == "ipo":
        per_token(draft, loss, kind)
    else:
        draft.carried(loss, "objective.kind")
    if kind in ("ipo", "hinge"):
        draft.put("objective.reference", "none", f"{draft.title}'s CPO has no reference")
    margin(draft, gamma, kind)
    if kind in ("cpo", "simpo"):
        draft.carry(said["label_smoothing"], "objective.label_smoothing", number(said["label_smoothing"]))
    else:
        draft.carried(said["label_smoothing"], "", f"loss {name} doesn't read it")
    share = 0.0 if name == "alphapo" else number(weight)
    draft.put("objective.supervised_weight", share, weight)
    if share:
        draft.note("mean_over_tokens", weight)
    else:
        draft.carried(weight, "objective.supervised_weight")


def margin(draft: Draft, gamma: GivenKey, kind: str) -> None:
    """SimPO's gamma: the margin between rewards, as here."""
    if kind == "simpo":
        draft.carry(gamma, "objective.margin", number(gamma))
    else:
        draft.carried(gamma, "", f"{kind} doesn't read it")


def without_dropout(given: Given, draft: Draft, key: str) -> None:
    """Dropout is switched off by the tool's preference training, whatever the file says."""
    entry = given.take(key)
    if entry is None or entry.off:
        draft.carried(entry, "adapter.dropout")
    else:
        how = f"0: {draft.title} switches dropout off where it learns from preferences"
        draft.otherwise(entry, how, "adapter.dropout")


def has_reference(draft: Draft) -> bool:
    """Whether the objective, as far as it is written, compares with a reference."""
    kind = draft.value("objective.kind")
    compares = any(
        found.kind == kind and ("reference" in found.section.model_fields or found.values_per_document > 0)
        for found in objectives.OBJECTIVES
    )
    return compares and draft.value("objective.reference") != "none"


def continued(given: Given, draft: Draft, key: str) -> None:
    """An adapter that is continued where the reference is the base without it."""
    entry = given.get(key)
    if entry is None or entry.off or not has_reference(draft):
        return
    names = name_list(entry)
    if len(names) > 1:
        return  # refused with the adapter's keys
    given.take(key)
    draft.carry(entry, "adapter.continue_from", local(names[0], given))
    draft.put("objective.reference", "base", f"{draft.title}'s reference is the base without {key}")


def together(draft: Draft) -> None:
    """What goes with an objective that compares pairs; finish.py calls it before packs are made."""
    if "objective.kind" not in draft.values:
        return
    for name in ("on_inputs", "masked", "mask_history"):
        draft.carried(
            draft.notes.pop(name, None), "objective.kind", "pairs are compared by their answers alone"
        )
    for name in ("packing", "pack_length"):
        entry = draft.notes.pop(name, None)
        if entry is not None:
            draft.otherwise(entry, "pairs aren't packed there, nor here", "data.pack_length_tokens")
    for path in ("data.supervise", "data.attention", "data.pack_split"):
        draft.remove(path)
    _loss_scale(draft)
    entry = draft.notes.pop("mean_over_tokens", None)
    path = "objective.kind" if draft.value("objective.kind") == "orpo" else "objective.supervised_weight"
    if entry is not None and draft.batch.micro > 1:
        how = "the mean of the answers' means; there, of a micro batch's tokens (the same with batches of 1)"
        draft.otherwise(entry, how, path, changes=True)
    else:
        draft.carried(entry, path)


def _loss_scale(draft: Draft) -> None:
    """ms-swift's weights of parts of an answer."""
    entry = draft.notes.pop("loss_scale", None)
    if entry is not None and entry.value not in ("default", "last_round"):
        draft.drop(entry, f"loss_scale {entry.value}: an answer's tokens are weighed alike")
    else:
        draft.carried(entry, "objective.kind", "pairs are compared by their answers alone")

"""An objective that compares pairs, as another tool's file says it. What a tool can't say is refused by the
recipe's key: another loss would be trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.conversion import back_judged
from finetune.conversion.back_sources import named, trl
from finetune.conversion.given import ConvertError

if TYPE_CHECKING:
    from finetune.conversion.back import Back

LOSSES: Mapping[str, Mapping[str, str]] = {
    "llamafactory": {kind: kind for kind in ("ipo", "hinge", "orpo", "simpo")} | {"dpo": "sigmoid"},
    "axolotl": {kind: kind for kind in ("ipo", "hinge", "robust", "orpo", "simpo")} | {"dpo": "sigmoid"},
    "trl": {kind: kind for kind in ("ipo", "hinge", "robust", "orpo", "simpo")}
    | {"dpo": "sigmoid", "cpo": "sigmoid"},
}
"""The kinds that a tool has, by its name of the loss."""
KEYS: Mapping[str, tuple[str, str, str]] = {
    # ours: Axolotl's, LLaMA-Factory's, TRL's
    "beta": ("rl_beta", "pref_beta", "beta"),
    "odds_weight": ("orpo_alpha", "pref_beta", "beta"),
    "margin": ("simpo_gamma", "simpo_gamma", "simpo_gamma"),
    "label_smoothing": ("dpo_label_smoothing", "dpo_label_smoothing", "label_smoothing"),
}
SMOOTHED = {"llamafactory": ("dpo",), "axolotl": ("robust",), "trl": ("robust", "cpo", "simpo")}
"""Kinds whose label smoothing a tool reads."""
JUDGED = ("kto", "reward")
RATIOS = ("dpo", "ipo", "hinge", "robust")
TRAINERS = {"orpo": "orpo.py", "simpo": "cpo.py", "cpo": "cpo.py"}
"""TRL's scripts, for what `trl dpo` doesn't have."""
PROMPTS = ("conversations", "messages", "instruction", "question", "prompt")
"""Columns that hold a row's prompt, as format preference calls them."""


def objective(back: "Back") -> None:
    """The keys of the objective. Raises ConvertError, naming ours, for what the tool hasn't."""
    section = back.plain["objective"]
    kind, tool = section["kind"], back.tool
    if kind in JUDGED:
        check_reference(back)
        back_judged.objective(back)
        _adapter(back)
        return
    if kind not in LOSSES[tool]:
        raise _refused(back, "kind", f"expected one of {', '.join((*LOSSES[tool], *JUDGED))}")
    check_reference(back)
    loss = _loss(back, kind)
    weight = section.get("supervised_weight", 0.0)
    if tool == "llamafactory":
        back.put("stage", "dpo", "objective.kind")
        back.put("pref_loss", loss, "objective.kind")
        if "supervised_weight" in section:
            back.put("pref_ftx", weight, "objective.supervised_weight")
            back.told("objective.supervised_weight", "carried", "pref_ftx")
    elif kind in RATIOS:
        _ratios(back, loss, weight)
    else:
        _without_reference(back, kind, loss, weight)
    differs = kind == "orpo" and section["learns_prompt"] != (tool != "llamafactory")
    what = "is learned there as well" if tool != "llamafactory" else "isn't learned there"
    back.told(
        "objective.kind",
        "otherwise" if differs else "carried",
        "stage" if tool == "llamafactory" else "rl" if tool == "axolotl" else "loss_type",
        f"the chosen answer's prompt {what}" if differs else "",
        changes=differs,
    )
    back.told("objective.learns_prompt", "carried")
    for name, keys in KEYS.items():
        if name in section and not (name == "label_smoothing" and kind not in SMOOTHED[tool]):
            key = keys[("axolotl", "llamafactory", "trl").index(tool)]
            back.put(key, section[name], f"objective.{name}")
            back.told(f"objective.{name}", "carried", key)
    _adapter(back)


def check_reference(back: "Back") -> None:
    """Raises ConvertError for a reference that the tool hasn't."""
    has = ("start", "base") if back.tool == "llamafactory" else ("start",)
    if "reference" not in back.plain["objective"]:
        return
    if back.plain["objective"]["reference"] not in has:
        raise _refused(back, "reference", f"expected {' or '.join(has)}")
    back.told("objective.reference", "carried")


def _refused(back: "Back", key: str, why: str) -> ConvertError:
    value = back.plain["objective"][key]
    return ConvertError(f"objective.{key}: {value} is not to be had in {back.tool}: {why}")


def _loss(back: "Back", kind: str) -> str:
    """The loss's name. Raises ConvertError where it is another with our keys."""
    section, loss = back.plain["objective"], LOSSES[back.tool][kind]
    if section.get("label_smoothing") and kind not in SMOOTHED[back.tool]:
        raise _refused(back, "label_smoothing", f"its loss {loss} has none")
    if "length_normalized" in section:
        by_length = section["length_normalized"]
        if by_length and kind == "dpo" and back.tool != "llamafactory":
            loss = "sigmoid_norm"
        elif by_length != (kind == "ipo"):
            form = "per token" if kind == "ipo" else "sums"
            raise _refused(back, "length_normalized", f"log-ratios of its loss {loss} are {form}")
        back.told("objective.length_normalized", "carried", f"loss {loss}")
    return loss


def _ratios(back: "Back", loss: str, weight: float) -> None:
    """TRL's DPOTrainer, which Axolotl has as well."""
    before = "dpo_" if back.tool == "axolotl" else ""
    if back.tool == "axolotl":
        back.put("rl", "dpo", "objective.kind")
    back.put(f"{before}loss_type", [loss, "sft"] if weight else [loss], "objective.kind")
    if weight:
        back.put(f"{before}loss_weights", [1.0, weight], "objective.supervised_weight")
    _supervised(back, f"{before}loss_weights", weight)


def _without_reference(back: "Back", kind: str, loss: str, weight: float) -> None:
    """TRL's ORPOTrainer and CPOTrainer."""
    if back.tool == "axolotl":
        back.put("rl", kind, "objective.kind")
    elif kind != "orpo":
        back.put("loss_type", loss, f"objective.kind: for {TRAINERS[kind]}, which isn't a command of trl")
    if kind != "orpo":
        back.put("cpo_alpha", weight, "objective.supervised_weight")
        _supervised(back, "cpo_alpha", weight)


def _supervised(back: "Back", key: str, weight: float) -> None:
    alone = back.loaded.recipe.train.micro_batch_size == 1 or not weight
    how = "" if alone else "the mean of a micro batch's tokens there, of the answers' means here"
    path = "objective.supervised_weight"
    back.told(path, "carried" if alone else "otherwise", key, how, changes=not alone)


def _adapter(back: "Back") -> None:
    """Dropout is switched off there, and LLaMA-Factory's reference has no adapter."""
    adapter = back.loaded.recipe.adapter
    if adapter.method != "full" and adapter.dropout:
        if back.tool == "trl":
            back.put("disable_dropout", False, "adapter.dropout")
        else:
            back.told("adapter.dropout", "dropped", how="it is switched off for pairs there", changes=True)
    base = back.plain["objective"].get("reference") == "base"
    if back.tool == "llamafactory" and adapter.continue_from is not None and not base:
        back.put("ref_model", back.plain["model"]["base"], "objective.reference")
        back.put("ref_model_adapters", str(adapter.continue_from), "adapter.continue_from")


def sources(back: "Back") -> None:
    """Data sets of pairs: of Axolotl by their columns, of TRL by name, of LLaMA-Factory by its own list."""
    train = back.plain["data"]["train"]
    if back.tool == "axolotl":
        back.put("datasets", [_axolotl(back, item, named(item)) for item in train], "data.train")
    elif back.tool == "llamafactory":
        listed = ",".join(Path(item.get("dataset") or item.get("path")).stem for item in train)
        how = "a column kto_tag" if back.plain["objective"]["kind"] == "kto" else "ranking: true"
        back.put("dataset", listed, f"data.train: describe each in dataset_info.json, with {how}")
    else:
        trl(back)


def columns_lost(back: "Back", columns: Mapping[str, str]) -> str:
    """Why Axolotl's type doesn't say the columns, where it doesn't."""
    said = back.plain["objective"]["kind"] not in JUDGED or back_judged.columns_said(back, columns)
    return "" if said else "the type says the columns there"


def _axolotl(back: "Back", item: Mapping[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    columns = item.get("columns") or {}
    prompt = next((name for name in PROMPTS if name in columns), "prompt")
    if back.plain["objective"]["kind"] in JUDGED:
        return back_judged.source(back, row, columns)
    if back.plain["objective"]["kind"] == "orpo":
        return row | {"type": "chat_template.argilla"}
    row |= {
        "type": "chat_template.default",
        "field_messages": columns.get(prompt, prompt),
        "field_chosen": columns.get("chosen", "chosen"),
        "field_rejected": columns.get("rejected", "rejected"),
    }
    if prompt == "conversations":
        row["message_property_mappings"] = {"role": "from", "content": "value"}
    return row

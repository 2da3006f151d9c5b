"""A recipe's data as another tool's file says it: sources, what is learned of them, packs."""

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.conversion import back_preference as preference
from finetune.conversion.back_sources import PARTS, named, trl

if TYPE_CHECKING:
    from finetune.conversion.back import Back

TYPES = {"alpaca": "alpaca", "messages": "chat_template", "sharegpt": "chat_template", "text": "completion"}

READ = {"axolotl": tuple(TYPES), "trl": ("messages", "sharegpt", "prompt_completion", "text")}
"""Formats whose rows a tool reads; LLaMA-Factory's are described in dataset_info.json."""

AXOLOTL_LONG = {"drop": "drop", "truncate_end": "truncate", "refuse": "raise"}


def data(back: "Back") -> None:
    """Sources, and what is learned of them."""
    compares = back.plain["objective"]["kind"] != "supervised"
    if compares:
        preference.objective(back)
        preference.sources(back)
    else:
        _sources(back)
    _told_of_sources(back, compares=compares)
    if compares:
        _unpacked(back)
    else:
        _learned(back)
        _packing(back)
    _long_rows(back)
    _order(back)


def _sources(back: "Back") -> None:
    train = back.plain["data"]["train"]
    if back.tool == "axolotl":
        rows = [named(item) | {"type": TYPES.get(item.get("format"), "chat_template")} for item in train]
        for row, item in zip(rows, train, strict=True):
            if item.get("format") == "sharegpt":
                row |= {
                    "field_messages": "conversations",
                    "message_property_mappings": {"role": "from", "content": "value"},
                }
        back.put("datasets", rows, "data.train")
    elif back.tool == "trl":
        trl(back)
    else:
        names = [Path(item.get("path") or item["dataset"]).stem for item in train]
        back.put("dataset", ",".join(names), "data.train: describe each in dataset_info.json")


def _told_of_sources(back: "Back", *, compares: bool) -> None:
    sources = back.plain["data"].get("evaluation") or {}
    for path in [path for path in back.loaded.origins if path.startswith("data.train.")]:
        why = _lost(back, path, compares=compares) if back.written(path) else ""
        back.told(path, "dropped" if why else "carried", "" if why else "datasets", why, changes=bool(why))
    for path in [path for path in back.loaded.origins if path.startswith("data.evaluation.sources")]:
        back.told(path, "dropped", how="name the evaluation rows there by hand", changes=False)
    if not sources:
        back.seen.add("data.evaluation")


def _lost(back: "Back", path: str, *, compares: bool) -> str:
    """Why a key of a source isn't in their file; empty where it is, or where it says nothing."""
    _, _, number, *parts = path.split(".")
    item = back.plain["data"]["train"][int(number)]
    key = parts[0] if parts else ""
    if key == "format":
        read = READ.get(back.tool)
        unread = read is not None and not compares and item["format"] not in (*read, "auto")
        return (
            f"rows of format {item['format']} are not read there: bring them into another" if unread else ""
        )
    if key == "columns" and compares and back.tool == "axolotl":
        return preference.columns_lost(back, item.get("columns") or {})
    if key in ("path", "dataset", "split", "type", "") or key in PARTS[back.tool]:
        return ""
    return "not a key of a source there"


def _unpacked(back: "Back") -> None:
    """Pairs are not packed by these tools, whose batches count pairs."""
    if back.plain["data"]["pack_length_tokens"] is not None:
        how = "pairs aren't packed there: a batch has so many pairs, and here so many packs"
        back.told("data.pack_length_tokens", "dropped", how=how, changes=True)
    back.told("data.supervise", "carried", "pairs are compared by their answers")


def _packing(back: "Back") -> None:
    """Packs, and whether documents of one see one another: by neat_packing in LLaMA-Factory, in TRL without
    flash attention; in Axolotl they never do."""
    data = back.plain["data"]
    packing, leaky = data["pack_length_tokens"], data["attention"] == "leaky"
    key = {"axolotl": "sample_packing", "llamafactory": "neat_packing", "trl": "packing"}[back.tool]
    if back.tool == "llamafactory" and packing is not None and leaky:
        key = "packing"
    back.put(key, packing is not None, "data.pack_length_tokens")
    if back.tool == "trl" and packing is not None and not leaky:
        back.put(
            "attn_implementation", "flash_attention_2", "data.attention: or else documents see one another"
        )
    if packing is not None and back.tool != "axolotl":
        back.told("data.attention", "carried", key)
    same = packing in (None, data["max_length_tokens"])
    how = "" if same else "packs are as long as max_length_tokens there"
    back.told("data.pack_length_tokens", "carried" if same else "otherwise", key, how, changes=not same)


def _long_rows(back: "Back") -> None:
    """What becomes of rows that are too long: Axolotl drops them or cuts their end, the others cut it."""
    path, value = "data.over_length", back.plain["data"]["over_length"]
    drops = back.tool == "trl" and back.plain["objective"]["kind"] == "reward"
    if back.tool == "axolotl" and value in AXOLOTL_LONG:
        back.put("excess_length_strategy", AXOLOTL_LONG[value], path)
        back.told(path, "carried", "excess_length_strategy")
    elif back.tool != "axolotl" and value == ("drop" if drops else "truncate_end"):
        back.told(path, "carried", "", "as there")
    else:
        becomes = "dropped" if drops or back.tool == "axolotl" else "cut"
        back.differs(path, "", f"rows that are too long are {becomes} there")


def _order(back: "Back") -> None:
    """Rows in their own order."""
    key = {"axolotl": "curriculum_sampling", "llamafactory": "disable_shuffling"}.get(back.tool)
    if not back.plain["data"]["shuffle"] and key:
        back.put(key, True, "data.shuffle")
        back.told("data.shuffle", "carried", key)


def _learned(back: "Back") -> None:
    supervise = back.plain["data"]["supervise"]
    everything = supervise == "all"
    if back.tool == "trl":
        key, value = "assistant_only_loss", not everything
    else:
        key, value = {"axolotl": "train_on_inputs", "llamafactory": "train_on_prompt"}[back.tool], everything
    back.put(key, value, "data.supervise")
    exact = supervise in ("assistant", "all")
    if supervise == "last" and back.tool == "llamafactory":
        back.put("mask_history", True, "data.supervise")
        exact = True
    back.told(
        "data.supervise",
        "carried" if exact else "otherwise",
        key,
        "" if exact else "all answers are learned there",
        changes=not exact,
    )

"""Sources of rows as another tool's file names them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.conversion.back import Back

PARTS: Mapping[str, Mapping[str, str]] = {
    "axolotl": {"config": "name", "revision": "revision"},
    "trl": {"config": "dataset_config"},
    "llamafactory": {},
}
"""Other keys of a source, and theirs."""


def named(item: Mapping[str, Any]) -> dict[str, Any]:
    """A source of Axolotl's without its type."""
    row: dict[str, Any] = {"path": item.get("dataset") or item.get("path")}
    if item.get("path"):
        row["ds_type"] = Path(item["path"]).suffix.lstrip(".").replace("jsonl", "json")
    if item.get("split", "train") != "train":
        row["split"] = item["split"]
    return row | {theirs: item[ours] for ours, theirs in PARTS["axolotl"].items() if item.get(ours)}


def trl(back: "Back") -> None:
    """TRL's one data set, or several."""
    train = back.plain["data"]["train"]
    if len(train) > 1:
        rows = [{"path": item.get("dataset") or item.get("path")} for item in train]
        for row, item in zip(rows, train, strict=True):
            row |= {
                theirs: item[ours]
                for ours, theirs in (("config", "name"), ("split", "split"))
                if item.get(ours)
            }
        back.put("datasets", rows, "data.train")
        return
    only = train[0]
    back.put("dataset_name", only.get("dataset") or only.get("path"), "data.train")
    if only.get("split", "train") != "train":
        back.put("dataset_train_split", only["split"], "data.train.0.split")
    if only.get("config"):
        back.put("dataset_config", only["config"], "data.train.0.config")

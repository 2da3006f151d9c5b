"""KTO and reward models as another tool's file says them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.conversion.given import ConvertError

if TYPE_CHECKING:
    from finetune.conversion.back import Back

KEYS: Mapping[str, Mapping[str, str]] = {
    "llamafactory": {
        "beta": "pref_beta",
        "good_weight": "kto_chosen_weight",
        "bad_weight": "kto_rejected_weight",
    },
    "axolotl": {
        "beta": "rl_beta",
        "good_weight": "kto_desirable_weight",
        "bad_weight": "kto_undesirable_weight",
        "centering": "center_rewards_coefficient",
    },
    "trl": {
        "beta": "beta",
        "good_weight": "desirable_weight",
        "bad_weight": "undesirable_weight",
        "centering": "center_rewards_coefficient",
    },
}
"""A tool's names for ours."""
ASKS: Mapping[tuple[str, str], tuple[tuple[str, Any], ...]] = {
    ("llamafactory", "kto"): (("stage", "kto"),),
    ("llamafactory", "reward"): (("stage", "rm"),),
    ("axolotl", "kto"): (("rl", "kto"),),
    ("axolotl", "reward"): (("reward_model", True), ("num_labels", 1)),
    ("trl", "kto"): (),
    ("trl", "reward"): (),
}
"""What asks for the objective; of TRL the command does, `trl kto` or `trl reward`."""
WRITES = ("chatml", "llama3")
"""Templates that Axolotl's types of judged answers write."""


def objective(back: "Back") -> None:
    """The keys of the objective. Raises ConvertError for one that the tool hasn't."""
    section, tool = back.plain["objective"], back.tool
    kind, keys = section["kind"], KEYS[tool]
    for key, value in section.items():
        if key not in ("kind", "reference") and key not in keys and value:
            raise ConvertError(f"objective.{key}: {value} is not to be had in {tool}'s {kind}")
        if key in keys:
            by = f"objective.{key}" + (f": for `trl {kind}`" if tool == "trl" else "")
            back.put(keys[key], value, by)
            back.told(f"objective.{key}", "carried", keys[key])
        elif key != "reference":
            back.told(f"objective.{key}", "carried")
    for name, value in ASKS[tool, kind]:
        back.put(name, value, "objective.kind")
    how = _differs(back, kind)
    named = ASKS[tool, kind]
    theirs = named[0][0] if named else f"trl {kind}"
    back.told("objective.kind", "otherwise" if how else "carried", theirs, how, changes=bool(how))


def _differs(back: "Back", kind: str) -> str:
    """What is not the same there, if anything."""
    train = back.loaded.recipe.train
    at_once = train.micro_batch_size * back.processes
    if kind == "kto" and train.global_batch_size > at_once:
        return f"the baseline is the mean over {at_once} rows at a time there, over a step's here"
    if kind == "reward" and back.tool == "llamafactory":
        return "the head has a bias there, and dropout of 0.1 before it"
    return ""


def source(back: "Back", row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A data set of Axolotl's, by its type, which says the columns too."""
    if back.plain["objective"]["kind"] == "reward":
        return row | {"type": "bradley_terry.chat_template"}
    template = back.plain["model"]["chat_template"]
    if template not in WRITES:
        back.differs("model.chat_template", "datasets", f"rows are written with {WRITES[0]} there")
    function = "intel" if columns.get("prompt") == "question" else "argilla"
    return row | {"type": f"{template if template in WRITES else WRITES[0]}.{function}"}


def columns_said(back: "Back", columns: Mapping[str, str]) -> bool:
    """Whether the type says these columns."""
    if back.plain["objective"]["kind"] == "reward":
        return dict(columns) == {"prompt": "input"}
    return dict(columns) in ({}, {"prompt": "question"})

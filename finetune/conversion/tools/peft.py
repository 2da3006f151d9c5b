"""peft's adapter_config.json, with transformers' training arguments beside it."""

from collections.abc import Mapping
from typing import Any

from finetune.conversion.base import TRAINER_DEFAULTS, Tool
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey
from finetune.conversion.model_values import by_module
from finetune.conversion.reading import read

BESIDE = ("training_args.json", "training_args.yaml", "training_args.yml", "training_args.toml")
EMPTY = (
    "corda_config",
    "eva_config",
    "loftq_config",
    "megatron_config",
    "qalora_group_size",
    "rank_pattern",
    "alpha_pattern",
)

DEFAULTS = {"init_weights": True, "fan_in_fan_out": False, "module_dropout": 0.0, "rank_dropout": 0.0}
OTHERS: Mapping[str, tuple[dict[str, str], dict[str, Any]]] = {
    "MISS": ({"r": "rank", "miss_dropout": "dropout"}, {"mini_r": 1}),
    "OFT": (
        {"oft_block_size": "block_size"},
        {
            "r": 0, "coft": False, "eps": 6e-5, "block_share": False, "use_cayley_neumann": True,
            "num_cayley_neumann_terms": 5,
        },
    ),
    "VERA": (
        {"r": "rank", "vera_dropout": "dropout"},
        {"projection_prng_key": 0, "save_projection": True, "d_initial": 0.1},
    ),
    "LOHA": ({"r": "rank", "alpha": "alpha"}, {"use_effective_conv2d": False}),
}  # fmt: skip
"""Adapters that peft computes here too: which of their keys are ours, and the defaults of those that are
not."""


def prepare(given: Given) -> None:
    """Training arguments that are beside the adapter; what torch pickled is never loaded."""
    for name in BESIDE:
        file = given.file.parent / name
        if file.is_file():
            shown = f"{given.shown.rpartition('/')[0]}/{name}".lstrip("/")
            for key, entry in read(file, shown).entries.items():
                given.entries.setdefault(key, entry)
            given.add_defaults(TRAINER_DEFAULTS)
            return


def convert(given: Given, draft: Draft) -> None:
    """The adapter's kind; rows, which neither file names."""
    kind = given.take("peft_type")
    if kind is not None:
        if kind.value not in ("LORA", *OTHERS):
            raise kind.refused(f"got {kind.value!r}, expected {', '.join(('LORA', *OTHERS))}")
        draft.carry(kind, "adapter.method", kind.value.lower())
        if kind.value in OTHERS:
            _by_peft(given, draft, *OTHERS[kind.value])
    task = given.take("task_type")
    if task is not None and task.value not in ("CAUSAL_LM", None):
        raise task.refused(f"got {task.value!r}, expected CAUSAL_LM")
    draft.carried(task, "objective.kind")
    for key in EMPTY:
        entry = given.get(key)
        if entry is not None and entry.off:
            given.take(key)
            draft.carried(entry, "", "off there")
    for key in ("rank_pattern", "alpha_pattern"):
        by_module(given.take_below(key), key, draft)
    pickled = given.file.parent / "training_args.bin"
    if pickled.is_file() and not any((given.file.parent / name).is_file() for name in BESIDE):
        why = "training_args.bin can run code and isn't loaded: write it as JSON (args.to_json_string())"
        draft.drop(GivenKey("training_args.bin", None, str(pickled), 1), why)
    draft.put("data.train.0.dataset", "owner/name", "not in the file: name the rows here")
    draft.put("data.train.0.format", "auto", "")
    rows = GivenKey("data", None, given.shown, 1)
    draft.drop(rows, "neither file says which rows were trained on: change data.train")


def _by_peft(given: Given, draft: Draft, ours: dict[str, str], defaults: dict[str, Any]) -> None:
    """The keys of an adapter that isn't LoRA; what a recipe has no key for must be peft's default."""
    for key, path in ours.items():
        entry = given.take(key)
        if entry is not None:
            draft.carry(entry, f"adapter.{path}", entry.value)
    for key, default in (DEFAULTS | defaults).items():
        entry = given.take(key) if key not in ours else None
        if entry is not None and entry.value == default:
            draft.carried(entry, "", "peft's default, as here")
        elif entry is not None:
            draft.drop(entry, f"a recipe has no key for it: here it is {default}")


TOOL = Tool(
    name="peft",
    title="an adapter_config.json",
    marks=("peft_type",),
    convert=convert,
    prepare=prepare,
    defaults={},
)

"""peft's adapter_config.json, with transformers' training arguments beside it."""

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
        if kind.value != "LORA":
            raise kind.refused(f"got {kind.value!r}, expected LORA: no other adapter is trained here")
        draft.carry(kind, "adapter.method", "lora")
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


TOOL = Tool(
    name="peft",
    title="an adapter_config.json",
    marks=("peft_type",),
    convert=convert,
    prepare=prepare,
    defaults={},
)

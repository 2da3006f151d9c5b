"""LLaMA-Factory's new form (v1): plug-ins by name, data in a YAML of its own."""

from dataclasses import replace
from pathlib import Path

from finetune.conversion.base import Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given
from finetune.conversion.judged import REWARD, reward
from finetune.conversion.preference import asked
from finetune.conversion.reading import read
from finetune.conversion.shell import VERB
from finetune.conversion.tools.llamafactory_data import FORMS
from finetune.conversion.tools.llamafactory_preference import KEYS, objective
from finetune.errors import FinetuneError

FORMS_V1 = FORMS | {"pair": "preference"}
"""What a data set's converter says of its rows."""


def prepare(given: Given) -> None:
    """Without peft_config all weights are trained; LoRA has the defaults of its plug-in."""
    name = given.value("peft_config.name")
    if name is None:
        given.add_defaults({"finetuning_type": "full"})
    else:
        given.add_defaults(
            {
                "peft_config.r": 8,
                "peft_config.lora_alpha": 16,
                "peft_config.lora_dropout": 0.05,
                "peft_config.target_modules": "all",
            }
        )


def convert(given: Given, draft: Draft) -> None:
    """Plug-ins, and the file that train_dataset names."""
    peft = given.take("peft_config.name")
    if peft is not None:
        if peft.value != "lora":
            raise peft.refused(f"got {peft.value!r}, expected lora: no other adapter is trained here")
        draft.carry(peft, "adapter.method", "lora")
    quant = given.take("quant_config.name")
    bits = given.take("quant_config.quantization_bit") or given.take("quant_config.bits")
    if quant is not None and not quant.off:
        if quant.value not in ("bnb", "auto"):
            raise quant.refused(f"got {quant.value!r}, expected bnb: bases are quantised by bitsandbytes")
        draft.note("bits", bits or replace(quant, value=4))
        draft.carried(quant, "adapter.method")
    strategy = given.take("batching_strategy")
    if strategy is not None:
        if strategy.value in ("normal", "padding_free"):
            draft.carried(strategy, "train.micro_batch_size", "so many rows, padded or not")
        else:
            how = "a step has so many rows here; there, what fits into so many tokens"
            draft.otherwise(strategy, how, "train.global_batch_size", changes=True)
    draft.put("data.over_length", "truncate_end", "LLaMA-Factory cuts rows at cutoff_len")
    for key, place in (("train_dataset", "data.train"), ("eval_dataset", "data.evaluation.sources")):
        _sources(given, draft, key, place)
    _objective(given, draft)


def _objective(given: Given, draft: Draft) -> None:
    """Pairs are compared; the command (dpo) isn't in the file."""
    verb = given.environment.get(VERB, "")
    if verb == "rm":
        reward(draft, asked(given, draft, REWARD), None)
        for path in [path for path in draft.values if path.endswith(".format")]:
            draft.values[path].value = "preference"
        return
    pairs = any(path.endswith(".format") and draft.value(path) == "preference" for path in draft.values)
    if verb == "dpo" or pairs or any(key in given for key in KEYS):
        objective(given, draft, keeps_dropout=True)
        for path in [path for path in draft.values if path.endswith(".format")]:
            draft.values[path].value = "preference"


def _sources(given: Given, draft: Draft, key: str, place: str) -> None:
    entry = given.take(key)
    if entry is None or entry.off:
        return
    name = str(entry.value)
    if not name.endswith((".yaml", ".yml")):
        source(draft, f"{place}.0", entry)
        return
    file = next(
        (folder / name for folder in (given.file.parent, *given.file.parents) if (folder / name).is_file()),
        None,
    )
    if file is None:
        source(draft, f"{place}.0", entry, tell=False, name=name.rsplit(".", 1)[0] + ".json")
        draft.otherwise(
            entry, f"{name}, which isn't beside the file, says what the rows are", place, changes=True
        )
        return
    try:
        listed = read(file, str(file))
    except FinetuneError as error:
        raise entry.refused(str(error)) from None
    names = dict.fromkeys(key.split(".")[0] for key in listed.entries)
    for index, data in enumerate(names):
        path = listed.get(f"{data}.path")
        if path is None:
            raise entry.refused(f"{file}: {data} has no path")
        form = FORMS_V1.get(str(listed.value(f"{data}.converter", "messages")), "messages")
        where = (
            str(path.value)
            if listed.value(f"{data}.source") != "local"
            else str(_beside(file, str(path.value)))
        )
        more = {"max_rows": listed.value(f"{data}.size"), "split": listed.value(f"{data}.split")}
        source(draft, f"{place}.{index}", entry, name=where, tell=False, form=form, **more)
    draft.carried(entry, place)


def _beside(file: Path, name: str) -> str:
    here = file.parent
    return str(next((p / name for p in (here, here.parent) if (p / name).exists()), name))


TOOL = Tool(
    name="llamafactory_v1",
    title="LLaMA-Factory v1",
    marks=(
        "peft_config.name",
        "model_class",
        "kernel_config.*",
        "dist_config.*",
        "train_dataset",
        "batching_strategy",
        "lr_scheduler_config.*",
        "optim_config.*",
        "quant_config.*",
    ),
    convert=convert,
    prepare=prepare,
    covers=("llamafactory",),
    verbs=("sft", "dpo", "rm"),
    defaults={
        "micro_batch_size": 1,
        "cutoff_len": 2048,
        "learning_rate": 1e-4,
        "num_train_epochs": 3,
        "max_grad_norm": 1.0,
        "enable_activation_checkpointing": True,
        "seed": 42,
        "bf16": True,
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant",
    },
)

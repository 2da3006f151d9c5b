"""LitGPT's YAML, as of config_hub/finetune, or its options in a script."""

import re
from dataclasses import replace
from pathlib import Path

from finetune.conversion.base import Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, base_name, local, truth, whole
from finetune.conversion.shell import VERB

SWITCHES = {
    "lora_query": (True, ("q_proj",)),
    "lora_key": (False, ("k_proj",)),
    "lora_value": (True, ("v_proj",)),
    "lora_projection": (False, ("o_proj",)),
    "lora_mlp": (False, ("gate_proj", "up_proj", "down_proj")),
    "lora_head": (False, ("lm_head",)),
}
DATA = {
    "Alpaca2k": ("mhenrichsen/alpaca_2k_test", "alpaca"),
    "Alpaca": ("yahma/alpaca-cleaned", "alpaca"),
    "AlpacaGPT4": ("vicgalle/alpaca-gpt4", "alpaca"),
    "Deita": ("HuggingFaceH4/deita-10k-v0-sft", "messages"),
    "LIMA": ("GAIR/lima", "auto"),
    "Dolly": ("databricks/databricks-dolly-15k", "auto"),
}
QUANTIZE = {
    "bnb.nf4": (4, False),
    "bnb.nf4-dq": (4, True),
    "bnb.int8-training": (8, False),
    "bnb.int8": (8, False),
}


def prepare(given: Given) -> None:
    """LoRA's defaults, where the file is of the LoRA script; a command's data.KEY as files have it."""
    for key in [key for key in given.entries if key.startswith("data.")]:
        name = key.removeprefix("data.")
        if not name.startswith(("class_path", "init_args.")):
            entry = given.entries.pop(key)
            given.entries[f"data.init_args.{name}"] = replace(entry, key=f"data.init_args.{name}")
    if _is_lora(given):
        given.add_defaults({"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05})


def _is_lora(given: Given) -> bool:
    """By its keys, or by the command, which without more is that of LoRA."""
    command = given.environment.get(VERB, "")
    return command in ("finetune", "lora", "finetune_lora") or any(
        key.startswith("lora_") for key in given.entries
    )


def convert(given: Given, draft: Draft) -> None:
    """Switches of modules, quantisation, and the data module."""
    _base(given, draft)
    lora = _is_lora(given)
    draft.put("adapter.method", "lora" if lora else "full", "LitGPT's LoRA script" if lora else "all weights")
    modules: list[str] = []
    for key, (default, names) in SWITCHES.items():
        entry = given.take(key)
        if truth(entry) if entry is not None else default:
            modules += names
        draft.carried(entry, "adapter.target_modules")
    if lora:
        draft.put(
            "adapter.target_modules",
            modules,
            "lora_query, lora_key, lora_value, lora_projection, lora_mlp, lora_head",
        )
    quantize = given.take("quantize")
    if quantize is not None and not quantize.off:
        if str(quantize.value) not in QUANTIZE:
            raise quantize.refused(f"got {quantize.value!r}, expected one of {', '.join(QUANTIZE)}")
        bits, double = QUANTIZE[str(quantize.value)]
        draft.note("bits", replace(quantize, value=bits))
        draft.note("double", replace(quantize, value=double))
        draft.carried(quantize, "adapter.method")
    elif quantize is not None:
        draft.carried(quantize, "adapter.method", "not quantised")
    precision = given.get("precision")
    if not lora and precision is not None and precision.value == "bf16-true":
        draft.put("train.weights_dtype", "bf16", precision)
    for key in ("train.min_lr",):
        entry = given.take(key)
        if entry is not None:
            draft.otherwise(
                entry,
                "LitGPT's fine-tuning doesn't read it: the rate falls to 0 there and here",
                "train.schedule",
            )
    devices, nodes = given.take("devices"), given.take("num_nodes")
    for entry in (devices, nodes):
        if entry is not None:
            draft.otherwise(
                entry,
                "how many processes is finetune train --launch ddp --processes N; the batch is over all",
            )
    fraction = given.take("train.lr_warmup_fraction")
    if fraction is not None and not fraction.off:
        draft.otherwise(
            fraction, "a fraction of an epoch there, of all steps here", "train.warmup_ratio", changes=True
        )
        draft.note("warmup", fraction)
    elif fraction is not None:
        draft.carried(fraction, "train.warmup_ratio")
    optimizer = given.take("optimizer")
    if optimizer is not None:
        draft.carry(optimizer, "train.optimizer", "adamw") if str(optimizer.value).lower().endswith(
            "adamw"
        ) else draft.drop(optimizer, f"optimizer {optimizer.value}: adamw stands in its place")
    _data(given, draft)
    draft.put("data.over_length", "truncate_end", "LitGPT cuts rows at max_seq_length")
    iterations = given.take("eval.max_iters")
    if iterations is not None:
        draft.drop(iterations, "the loss is measured on all evaluation rows", changes=False)


def _data(given: Given, draft: Draft) -> None:
    name = given.take("data.class_path") or given.take("data")
    kind = str(name.value).rpartition(".")[2] if name is not None else "Alpaca"
    path, style, masked = (
        given.take(f"data.init_args.{key}") for key in ("json_path", "prompt_style", "mask_prompt")
    )
    held_out, seed = given.take("data.init_args.val_split_fraction"), given.take("data.init_args.seed")
    alpaca = style is None or style.value == "alpaca"
    if path is not None:
        _json(draft, path)
    elif kind in DATA:
        where, form = DATA[kind]
        if name is not None:
            source(draft, "data.train.0", name, name=where, form=form)
        else:
            draft.put("data.train.0.dataset", where, "LitGPT's default of data")
            draft.put("data.train.0.format", form, "LitGPT's default of data")
    elif name is not None:
        raise name.refused(f"{kind} is not known; expected JSON with json_path, or one of {', '.join(DATA)}")
    if name is not None and path is not None:
        draft.carried(name, "data.train.0.format")
    if alpaca:
        draft.put("model.chat_template", "alpaca", style or "LitGPT's default of prompt_style")
    if style is not None:
        draft.carried(style, "model.chat_template") if alpaca else draft.otherwise(
            style,
            "the tokenizer's own template",
            "model.chat_template",
            changes=style.value not in ("default", "none"),
        )
    learned = truth(masked) if masked is not None else False
    draft.put(
        "data.supervise", "assistant" if learned else "all", masked or "LitGPT's default of mask_prompt"
    )
    draft.carried(masked, "data.supervise")
    if held_out is not None:
        draft.note("held_out", held_out)
    elif kind == "Alpaca2k" and path is None:
        draft.put("data.evaluation.fraction", 0.05, "LitGPT holds out 5 % of it")
    if seed is not None:
        draft.otherwise(seed, "one seed for the order of rows and all else", "train.seed")
    entry = given.get("train.epochs")
    steps = given.get("train.max_steps")
    if entry is not None and steps is not None and not steps.off and whole(steps):
        draft.otherwise(given.take("train.epochs") or entry, "max_steps ends it", "train.max_steps")


def _json(draft: Draft, path: GivenKey) -> None:
    """A file, or a folder with train.json and val.json, which may be JSONL."""
    folder = Path(local(str(path.value), draft.given))
    found = [
        next((file for file in (folder / f"{part}.json", folder / f"{part}.jsonl") if file.is_file()), None)
        for part in ("train", "val")
    ]
    if not folder.is_dir() or found[0] is None:
        source(draft, "data.train.0", path, form="alpaca")
        return
    source(draft, "data.train.0", path, name=str(found[0]), form="alpaca")
    if found[1] is not None:
        source(draft, "data.evaluation.sources.0", path, name=str(found[1]), tell=False, form="alpaca")


def _base(given: Given, draft: Draft) -> None:
    """checkpoints/OWNER/NAME is LitGPT's own form of a base of the hub, which has the same name."""
    entry = given.get("checkpoint_dir")
    match = None if entry is None else re.fullmatch(r"(?:\./)?checkpoints/([^/]+/[^/]+)/?", str(entry.value))
    if entry is not None and match is not None:
        given.take("checkpoint_dir")
        draft.put("model.base", base_name(replace(entry, value=match[1]), given), entry)
        draft.otherwise(entry, f"LitGPT's form of {match[1]}, which is loaded from the hub", "model.base")


TOOL = Tool(
    name="litgpt",
    title="LitGPT",
    marks=(
        "lora_query",
        "lora_key",
        "lora_projection",
        "lora_mlp",
        "data.class_path",
        "train.lr_warmup_steps",
        "train.save_interval",
        "eval.initial_validation",
    ),
    convert=convert,
    prepare=prepare,
    defaults={
        "train.global_batch_size": 16,
        "train.micro_batch_size": 1,
        "train.lr_warmup_steps": 100,
        "train.epochs": 5,
        "train.max_seq_length": None,
        "train.max_norm": None,
        "optimizer.init_args.lr": 1e-3,
        "optimizer.init_args.weight_decay": 0.01,
        "optimizer.init_args.betas": [0.9, 0.999],
        "seed": 1337,
        "train.save_interval": 1000,
        "eval.interval": 100,
    },
)

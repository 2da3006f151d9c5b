"""Axolotl's YAML: its list of data sets, prompt types and half-open keys."""

from dataclasses import replace

from finetune.conversion.base import Tool
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, at_least_one, name_list, truth
from finetune.conversion.tools.axolotl_data import data
from finetune.conversion.tools.axolotl_preference import objective

VOCABULARY = {"embed_tokens", "lm_head"}
REFUSED = ("kd_trainer", "relora", "relora_steps")


def prepare(given: Given) -> None:
    """Names that stand for others, and alpha's default."""
    adapter = given.get("adapter")
    given.add_defaults({"lora_alpha": 16, "lora_r": 8} if adapter and not adapter.off else {})


def convert(given: Given, draft: Draft) -> None:
    """Data sets, the adapter, special tokens, and what `batch_size` means."""
    for key in REFUSED:
        entry = given.take(key)
        if entry is not None and not entry.off:
            raise entry.refused(
                "supervised training, pre-training and preferences are converted: this is none of them"
            )
        draft.carried(entry, "", "off there")
    _batch(given, draft)
    compares = objective(given, draft)
    adapter = given.take("adapter")
    if adapter is None or adapter.off:
        draft.put("adapter.method", "full", adapter or "no adapter")
        draft.carried(adapter, "adapter.method")
    elif adapter.value in ("lora", "qlora"):
        draft.carry(adapter, "adapter.method", adapter.value)
        if adapter.value == "qlora":
            draft.put("adapter.double_quantization", True, "Axolotl quantises twice")
    else:
        raise adapter.refused(
            f"got {adapter.value!r}, expected lora or qlora: no other adapter is trained here"
        )
    double = given.take("bnb_config_kwargs.bnb_4bit_use_double_quant")
    if double is not None:
        draft.note("double", double)
    for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear"):
        entry = given.get(key)
        if entry is not None and entry.value is None:
            given.take(key)
            draft.carried(entry, "", "not set there")
    if adapter is not None and not adapter.off and not _targets(given):
        draft.put("adapter.target_modules", "all-linear", "no modules are named")
    linear = given.get("lora_target_linear")
    if linear is not None and linear.value is not None and truth(linear):
        named = given.take("lora_target_modules")
        more = [] if named is None or named.off else sorted(VOCABULARY.intersection(name_list(named)))
        if named is not None and more:
            draft.drop(named, f"all linear layers have an adapter, and {', '.join(more)} none")
        else:
            draft.carried(named, "adapter.target_modules", "lora_target_linear says all")
    data(given, draft, compares=compares)
    given.take_below("message_property_mappings")
    best = given.get("save_strategy")
    if best is not None and best.value == "best":
        given.take("save_strategy")
        draft.carry(best, "train.best_by", "loss")
    inputs = given.get("train_on_inputs")
    if inputs is not None and not truth(inputs) and given.under("pretraining_dataset"):
        given.take("train_on_inputs")
        draft.carried(inputs, "data.supervise", "texts are learned whole")


def _batch(given: Given, draft: Draft) -> None:
    """batch_size, the older name for all rows of a process in a step, says the accumulation where nothing
    else does."""
    rows, steps = given.take("batch_size"), given.get("gradient_accumulation_steps")
    if rows is None or rows.off:
        draft.carried(rows, "train.global_batch_size", "not set there")
    elif steps is not None and steps.written and not steps.off:
        draft.otherwise(rows, f"{steps.key} goes before it", "train.global_batch_size")
    else:
        micro = given.get("micro_batch_size")
        count = max(1, at_least_one(rows) // (at_least_one(micro) if micro is not None else 1))
        key = "gradient_accumulation_steps"
        given.entries[key] = replace(rows, key=key, value=count)
        draft.carried(rows, "train.global_batch_size")


def _targets(given: Given) -> bool:
    return any(
        not given.entries[key].off for key in ("lora_target_modules", "lora_target_linear") if key in given
    )


TOOL = Tool(
    name="axolotl",
    title="Axolotl",
    marks=(
        "base_model",
        "sequence_len",
        "sample_packing",
        "val_set_size",
        "datasets.0.type",
        "lora_target_linear",
        "dataset_prepared_path",
        "evals_per_epoch",
        "saves_per_epoch",
        "pretraining_dataset.0.path",
    ),
    convert=convert,
    prepare=prepare,
    defaults={
        "sequence_len": 512,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1.0,
        "optimizer": "adamw_torch_fused",
        "lr_scheduler": "cosine",
        "weight_decay": 0.0,
        "lora_dropout": 0.0,
        "max_grad_norm": 1.0,
        "seed": 42,
        "train_on_inputs": False,
        "learning_rate": 2e-4,
        "save_steps": 500,
    },
)

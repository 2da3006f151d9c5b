"""Axolotl's YAML: its list of data sets, prompt types and half-open keys."""

from typing import Any

from finetune.conversion.base import Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, truth
from finetune.conversion.tools.axolotl_preference import objective, pairs, templates
from finetune.recipe.aliases import FORMATS

ALPACA = ("alpaca", "alpaca:chat", "alpaca_chat.load_qa")
SOURCE_KEYS = (
    "path",
    "type",
    "name",
    "split",
    "data_files",
    "ds_type",
    "field",
    "field_messages",
    "revision",
)
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
        draft.carried(named, "adapter.target_modules", "lora_target_linear says all")
    _data(given, draft, compares=compares)
    evaluation = [key for key in given.entries if key.startswith("test_datasets.")]
    if evaluation:
        _datasets(given, draft, "test_datasets", "data.evaluation.sources", compares=compares)
    keys = [key for key in given.entries if key.startswith("message_property_mappings")]
    for key in keys:
        given.take(key)
    best = given.get("save_strategy")
    if best is not None and best.value == "best":
        given.take("save_strategy")
        draft.carry(best, "train.best_by", "loss")
    inputs = given.get("train_on_inputs")
    if inputs is not None and not truth(inputs) and given.under("pretraining_dataset"):
        given.take("train_on_inputs")
        draft.carried(inputs, "data.supervise", "texts are learned whole")


def _targets(given: Given) -> bool:
    return any(
        not given.entries[key].off for key in ("lora_target_modules", "lora_target_linear") if key in given
    )


def _data(given: Given, draft: Draft, *, compares: bool) -> None:
    if compares:
        templates(given, draft)
    forms = _datasets(given, draft, "datasets", "data.train", compares=compares)
    forms += _datasets(given, draft, "pretraining_dataset", "data.train", compares=False)
    single = given.take("pretraining_dataset") or given.take("datasets")
    if single is not None and not single.off:
        source(draft, "data.train.0", single, form="text")
    template = given.get("chat_template")
    jinja = given.take("chat_template_jinja")
    if jinja is not None and not jinja.off:
        draft.carry(jinja, "model.chat_template", jinja.value)
        given.take("chat_template")
        draft.carried(template, "model.chat_template")
    elif "alpaca" in forms and template is None:
        draft.put("model.chat_template", "alpaca", "datasets.0.type: alpaca writes this prompt")


def _datasets(given: Given, draft: Draft, key: str, place: str, *, compares: bool) -> list[str]:
    """The form of each data set, written below `place`; `compares`: they hold pairs."""
    forms = []
    start = len({path.split(".")[2] for path in draft.values if path.startswith(f"{place}.")})
    for index, prefix in enumerate(given.items(key), start=start):
        path = given.take(f"{prefix}.path")
        if path is None:
            raise given.refused(f"{prefix} has no path")
        own = ("path", "type", "field_messages") if compares else ("path",)
        kind = given.take(f"{prefix}.type") if compares else None
        read = {name: None if name in own else given.take(f"{prefix}.{name}") for name in SOURCE_KEYS}
        form, more = (
            ("preference", pairs(given, draft, prefix, kind))
            if compares
            else _form(given, draft, prefix, read)
        )
        for name, entry in read.items():
            draft.carried(entry, f"{place}.{index}.{'format' if name == 'type' else name}")
        files = read["data_files"]
        name = str(path.value)
        if files is not None and not files.off:
            listed = files.value if isinstance(files.value, list) else [files.value]
            local_files = name in ("json", "csv", "parquet", "text") or name.startswith((".", "/"))
            if not local_files:
                draft.otherwise(
                    files,
                    f"the files {', '.join(map(str, listed))} of {name}: download them, or name a config",
                    changes=True,
                )
            elif len(listed) == 1:
                name = str(listed[0])
            else:
                for extra, file in enumerate(listed[1:], start=1):
                    source(
                        draft, f"{place}.{index + extra}", path, name=str(file), tell=False, form=form, **more
                    )
                name = str(listed[0])
        config = read["name"].value if read["name"] is not None else None
        split = read["split"].value if read["split"] is not None else None
        source(draft, f"{place}.{index}", path, name=name, form=form, config=config, split=split, **more)
        forms.append("alpaca" if form == "alpaca" else form)
        for left in given.take_below(prefix):
            _leftover(draft, left)
    return forms


def _leftover(draft: Draft, entry: GivenKey) -> None:
    name = entry.key.split(".")[-1]
    if (
        "message_property_mappings" in entry.key
        or ".roles." in entry.key
        or name
        in (
            "field_thinking",
            "template_thinking_key",
            "roles_to_train",
        )
    ):
        draft.carried(entry, "data.train", "as the format reads it")
    elif name in (
        "shards",
        "preprocess_shards",
        "train_on_eos",
        "train_on_eot",
        "message_field_role",
        "message_field_content",
        "trust_remote_code",
        "chat_template",
        "conversation",
    ):
        draft.otherwise(entry, "the format and the template say it")
    elif entry.off:
        draft.carried(entry, "", "off there")
    else:
        draft.drop(entry, "no counterpart for a data set's own key")


def _form(
    given: Given, draft: Draft, prefix: str, read: dict[str, GivenKey | None]
) -> tuple[str, dict[str, Any]]:
    """The format of a data set, and options of it."""
    more: dict[str, Any] = {}
    custom = [key for key in given.entries if key.startswith(f"{prefix}.type.")]
    if custom:
        return _custom(given, draft, prefix)
    kind = read["type"]
    name = str(kind.value) if kind is not None and kind.value is not None else "auto"
    base = name.split(":")[0].split(".")[0]
    if name in ALPACA or base == "alpaca":
        form = "question_answer" if "load_qa" in name else "alpaca"
    else:
        form = FORMATS.get(base, "auto")
        if form == "auto" and kind is not None and not kind.off:
            draft.otherwise(kind, f"type {name} is read as format auto", changes=True)
    if form == "messages":
        field = read["field_messages"].value if read["field_messages"] is not None else None
        role = given.value(
            f"{prefix}.message_property_mappings.role", given.value(f"{prefix}.message_field_role")
        )
        if role == "from" or (field == "conversations" and role is None):
            form = "sharegpt"
            more = {"columns": {"conversations": field}} if field not in (None, "conversations") else {}
        elif field not in (None, "messages"):
            more = {"columns": {"messages": field}}
    if form == "text" and read["field"] is not None and read["field"].value not in (None, "text"):
        more = {"columns": {"text": read["field"].value}}
    return form, more


def _custom(given: Given, draft: Draft, prefix: str) -> tuple[str, dict[str, Any]]:
    """A prompt written in the file: {instruction}, {input} become the columns that it names."""
    values = {}
    for key in [key for key in given.entries if key.startswith(f"{prefix}.type.")]:
        entry = given.take(key)
        if entry is not None:
            values[key.rpartition(".")[2]] = entry.value
            draft.carried(entry, "data.train.0.template")
    text = str(values.get("format") or "{instruction} {input}")
    names = {
        name: values.get(f"field_{name}") or name for name in ("instruction", "input", "output", "system")
    }
    for name, column in names.items():
        text = text.replace("{" + name + "}", "{{ " + str(column) + " }}")
    completion = "{{ " + str(names["output"]) + " }}"
    return "template", {"template.prompt": text, "template.completion": completion, "template.chat": False}


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

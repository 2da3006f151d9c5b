"""torchtune's YAML: components by their dotted names."""

from dataclasses import replace
from typing import Any

from finetune.conversion.base import Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, name_list, truth, whole
from finetune.conversion.tools.torchtune_preference import columns, objective

DATASETS: dict[str, tuple[str, str]] = {
    "alpaca_dataset": ("tatsu-lab/alpaca", "alpaca"),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", "alpaca"),
    "slimorca_dataset": ("Open-Orca/SlimOrca-Dedup", "sharegpt"),
    "samsum_dataset": ("Samsung/samsum", "summarisation"),
    "wikitext_dataset": ("EleutherAI/wikitext_document_level", "text"),
    "cnn_dailymail_articles_dataset": ("ccdv/cnn_dailymail", "text"),
    "chat_dataset": ("", "messages"),
    "instruct_dataset": ("", "prompt_completion"),
    "text_completion_dataset": ("", "text"),
    "stack_exchange_paired_dataset": ("lvwerra/stack-exchange-paired", "preference"),
    "hh_rlhf_helpful_dataset": ("RLHFlow/HH-RLHF-Helpful-standard", "preference"),
    "preference_dataset": ("", "preference"),
}
READERS = ("json", "csv", "parquet", "text")


def convert(given: Given, draft: Draft) -> None:
    """The model's builder, the data set's, and what an epoch's end is."""
    component = given.take("model._component_")
    if component is None:
        raise given.refused("model._component_ is missing: it says what is trained")
    name = str(component.value).rpartition(".")[2]
    if any(word in name for word in ("vision", "reward", "classifier", "llama4", "t5", "clip")):
        raise component.refused(f"{name} is no text model that answers; such are converted")
    method = "qlora" if name.startswith("qlora") else "lora" if name.startswith("lora") else "full"
    draft.carry(component, "adapter.method", method)
    quantised = given.take("model.quantize_base")
    if quantised is not None and truth(quantised):
        draft.carry(quantised, "adapter.method", "qlora")
    if method != "full":
        _targets(given, draft)
    for key in ("kd_loss._component_", "teacher_model._component_", "quantizer._component_"):
        entry = given.get(key)
        if entry is not None:
            raise entry.refused("distillation and quantisation-aware training are not here")
    objective(given, draft)
    folder = given.get("checkpointer.checkpoint_dir")
    if folder is None:
        raise given.refused("checkpointer.checkpoint_dir is missing: it names the base")
    if not given.under("lr_scheduler"):
        draft.put("train.schedule", "constant", "no lr_scheduler")
    epoch = given.take("max_steps_per_epoch")
    if epoch is not None and not epoch.off:
        epochs = given.entries.get("epochs")
        draft.carry(epoch, "train.max_steps", whole(epoch) * (whole(epochs) if epochs else 1))
    elif epoch is not None:
        draft.carried(epoch, "train.epochs")
    dtype = given.get("dtype")
    if method == "full" and dtype is not None and dtype.value == "bf16":
        draft.put("train.weights_dtype", "bf16", dtype)
    profiler = given.get("profiler.enabled")
    if profiler is None or not truth(profiler):
        for entry in given.take_below("profiler"):
            draft.carried(entry, "", "off there; the toolkit has none")
    for key, place in (("dataset", "data.train"), ("dataset_val", "data.evaluation.sources")):
        for number, prefix in enumerate(given.items(key)):
            _data(given, draft, prefix, f"{place}.{number}")
    prompt = given.take("tokenizer.prompt_template")
    if prompt is not None and not prompt.off:
        draft.drop(prompt, "the base's own template, or model.chat_template, writes the turns")
    else:
        draft.carried(prompt, "model.chat_template")
    draft.put(
        "data.over_length",
        draft.value("data.over_length", "truncate_end"),
        "torchtune cuts rows at max_seq_len",
    )
    every = given.take("run_val_every_n_steps")
    if every is not None:
        if every.off:
            draft.remove("data.evaluation")
            draft.carried(every, "data.evaluation", "nothing is evaluated")
        else:
            draft.note("evaluate_every", every)
    draft.put("train.save_every", "1 epoch", "torchtune saves after each epoch")


def _targets(given: Given, draft: Draft) -> None:
    attention, mlp, output = (
        given.take(f"model.{key}")
        for key in ("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output")
    )
    modules: list[str] = []
    if attention is not None:
        named = [] if attention.off else name_list(attention)
        modules += [{"output_proj": "o_proj"}.get(name, name) for name in named]
        draft.carried(attention, "adapter.target_modules")
    if mlp is not None:
        modules += ["gate_proj", "up_proj", "down_proj"] if truth(mlp) else []
        draft.carried(mlp, "adapter.target_modules")
    if output is not None:
        modules += ["lm_head"] if truth(output) else []
        draft.carried(output, "adapter.target_modules")
    said = ", ".join(entry.key for entry in (attention, mlp, output) if entry is not None)
    draft.put("adapter.target_modules", modules, said or "torchtune's builder")


def _data(given: Given, draft: Draft, key: str, place: str) -> None:
    component = given.take(f"{key}._component_")
    if component is None:
        return
    name = str(component.value).rpartition(".")[2]
    if name not in DATASETS:
        raise component.refused(f"{name} is not known; expected one of {', '.join(DATASETS)}")
    default, default_form = DATASETS[name]
    form = default_form
    values = {
        part: given.take(f"{key}.{part}")
        for part in (
            "source",
            "split",
            "data_files",
            "name",
            "subset",
            "column",
            "conversation_column",
            "conversation_style",
            "train_on_input",
            "packed",
            "new_system_prompt",
            "split_across_pack",
            "column_map.input",
            "column_map.output",
            "column_map.instruction",
            "column_map.prompt",
            "column_map.chosen",
            "column_map.rejected",
        )
    }
    for part, entry in values.items():
        if entry is not None and part not in ("packed", "new_system_prompt", "train_on_input"):
            draft.carried(entry, place)
    compares = "objective.kind" in draft.values
    if compares != (form == "preference"):
        what = "a preference loss, which compares pairs" if compares else "supervised training"
        raise component.refused(f"{name}'s rows don't go with {what}")
    turns = form == "alpaca" and "llama3" in str(given.value("tokenizer._component_", ""))
    form, more = (
        (form, columns(name, values)) if compares else _alpaca(values) if turns else _shape(form, values)
    )
    text = _value(values["source"], default)
    if text in READERS:
        text = _value(values["data_files"], "")
        text = text[0] if isinstance(text, list) and text else str(text)
    at = values["source"] or component
    source(
        draft,
        place,
        replace(at, value=text),
        name=str(text),
        form=form,
        split=_value(values["split"], None),
        config=_value(values["name"] or values["subset"], None),
        **more,
    )
    if at is not component:
        draft.carried(component, f"{place}.format")
    if place != "data.train.0":
        return
    if default_form == "alpaca":
        wrapped = form == "template"
        draft.put(
            "model.chat_template",
            "llama3" if wrapped else "alpaca",
            "tokenizer._component_: its turns" if wrapped else f"{component.key}: {name} writes this prompt",
        )
    learns_input = values["train_on_input"]
    if form == "preference":
        draft.carried(learns_input, "objective.kind", "pairs are compared by their answers alone")
    elif form != "text":
        whole_row = truth(learns_input) if learns_input is not None else default_form == "alpaca"
        draft.put("data.supervise", "all" if whole_row else "assistant", learns_input or f"default of {name}")
    if values["packed"] is not None:
        draft.note("packing", values["packed"])
    if form == "text" and values["packed"] is not None and truth(values["packed"]):
        draft.put(
            "data.pack_split",
            values["split_across_pack"] is None or truth(values["split_across_pack"]),
            component,
        )
    system = values["new_system_prompt"]
    if system is not None and not system.off:
        draft.carry(system, "data.system", system.value)
    elif system is not None:
        draft.carried(system, "data.system")


def _value(entry: GivenKey | None, otherwise: Any) -> Any:
    return entry.value if entry is not None and entry.value is not None else otherwise


def _alpaca(values: dict[str, GivenKey | None]) -> tuple[str, dict[str, Any]]:
    """The published prompt as the text of a user's turn, which the tokenizer of Llama 3 writes around it."""
    instruction, context, answer = (
        str(_value(values[f"column_map.{part}"], part)) for part in ("instruction", "input", "output")
    )
    what = "Below is an instruction that describes a task"
    ask = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    more = f"{what}, paired with an input that provides further context. {ask}{{{{ {instruction} }}}}\n\n"
    more += f"### Input:\n{{{{ {context} }}}}\n\n### Response:\n"
    less = f"{what}. {ask}{{{{ {instruction} }}}}\n\n### Response:\n"
    prompt = f"{{% if {context} is defined and {context} %}}{more}{{% else %}}{less}{{% endif %}}"
    return "template", {"template.prompt": prompt, "template.completion": f"{{{{ {answer} }}}}"}


def _shape(form: str, values: dict[str, GivenKey | None]) -> tuple[str, dict[str, Any]]:
    """The format and the columns that a builder's options make."""
    columns: dict[str, str] = {}
    if form == "alpaca":
        named = {part: values[f"column_map.{part}"] for part in ("instruction", "input", "output")}
        columns = {
            part: str(_value(entry, part)) for part, entry in named.items() if _value(entry, part) != part
        }
    elif form == "messages":
        form = "sharegpt" if _value(values["conversation_style"], "openai") == "sharegpt" else "messages"
        column, default = (
            _value(values["conversation_column"], ""),
            "conversations" if form == "sharegpt" else "messages",
        )
        columns = {default: column} if column not in ("", default) else {}
    elif form == "prompt_completion":
        named = {"prompt": values["column_map.input"], "completion": values["column_map.output"]}
        columns = {ours: str(_value(entry, ours)) for ours, entry in named.items()}
        if not any(named.values()):
            columns = {"prompt": "input", "completion": "output"}
    elif form == "text" and _value(values["column"], "text") != "text":
        columns = {"text": str(_value(values["column"], "text"))}
    elif form == "summarisation":
        columns = {"document": "dialogue"}
    return form, {"columns": columns}


TOOL = Tool(
    name="torchtune",
    title="torchtune",
    marks=("*._component_",),
    convert=convert,
    interpolates=True,
    defaults={
        "tokenizer.max_seq_len": None,
        "gradient_accumulation_steps": 1,
        "clip_grad_norm": None,
        "optimizer.weight_decay": 0.01,
        "model.lora_rank": 8,
        "model.lora_alpha": 16,
        "model.lora_dropout": 0.0,
        "batch_size": 1,
        "epochs": 1,
        "shuffle": True,
    },
)

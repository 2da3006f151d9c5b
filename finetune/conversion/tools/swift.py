"""ms-swift: its command line in a shell script, or the same keys in YAML or JSON."""

from typing import Any

from data_prep.config.modelscope import ON_THE_HUB
from finetune.conversion.base import TRAINER_DEFAULTS, Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, is_hub_id, local, truth, whole
from finetune.conversion.preference import refused
from finetune.conversion.shell import TOOL as COMMAND
from finetune.conversion.tools.swift_preference import objective


def prepare(given: Given) -> None:
    """Defaults that follow from others."""
    kind = str(given.value("tuner_type", given.value("train_type", "lora")))
    rate = 1e-5 if kind == "full" else 1e-4
    given.add_defaults({"learning_rate": rate, "per_device_train_batch_size": 1})


def convert(given: Given, draft: Draft) -> None:
    """Data sets with #N, placeholders, the tasks, processes of the script."""
    rows = objective(given, draft)
    teacher = given.get("teacher_model")
    if teacher is not None:
        raise refused(teacher, "gkd")
    task = given.take("task_type")
    if task is not None and task.value != "causal_lm":
        _task(given, draft, task)
    elif task is not None:
        draft.carried(task, "objective.kind")
    _accumulation(given, draft)
    _order(given, draft)
    fields = given.take("use_hf")
    hub = fields is not None and truth(fields)
    draft.carried(fields, "data.train")
    name, author = given.take("model_name"), given.take("model_author")
    _placeholder(draft, name, "{{NAME}}")
    _placeholder(draft, author, "{{AUTHOR}}")
    form = rows or ("classification" if "classifies" in draft.notes else "auto")
    _sources(given, draft, "dataset", "data.train", form, hub=hub)
    _sources(given, draft, "val_dataset", "data.evaluation.sources", form, hub=hub)
    if given.environment.get("USE_HF") in ("1", "true"):
        hub = True
    quant = given.take("quant_method")
    if quant is not None and not quant.off:
        if quant.value not in ("bnb",):
            raise quant.refused(f"got {quant.value!r}, expected bnb: bases are quantised by bitsandbytes")
        draft.carried(quant, "adapter.method")
    draft.put("data.over_length", "drop", "ms-swift deletes rows that are longer than max_length")
    template, packing = given.get("use_chat_template"), given.get("packing")
    if template is not None:
        given.take("use_chat_template")
        if truth(template):
            draft.carried(template, "model.chat_template", "as here")
        else:
            draft.drop(template, "rows without a chat template: give them format text")
    if packing is not None and truth(packing) and not rows:
        draft.carried(given.take("packing") or packing, "data.pack_length_tokens")
        draft.note("packing", packing)
    agent = given.take("agent_template")
    if agent is not None:
        draft.otherwise(
            agent, "the tokenizer's template writes tools and calls", "model.chat_template", changes=True
        )
    ratio = given.get("split_dataset_ratio")
    if ratio is None and given.under("eval_steps"):
        draft.otherwise(GivenKey("eval_steps", None, given.shown, 0), "no rows to evaluate on", changes=False)
    length = given.get("max_length")
    if length is None:
        draft.note("length", GivenKey("max_length", None, given.shown))


def _accumulation(given: Given, draft: Draft) -> None:
    """Where it isn't written, as many micro batches as make 16 rows a step, over all processes."""
    micro = given.value("per_device_train_batch_size", 1)
    rows = micro * draft.batch.processes if isinstance(micro, int) and micro > 0 else 16
    given.add_defaults({"gradient_accumulation_steps": max(1, -(-16 // rows))})


def _order(given: Given, draft: Draft) -> None:
    """Rows are shuffled once (dataset_shuffle), and in every epoch (train_dataloader_shuffle)."""
    once, anew = given.take("dataset_shuffle"), given.get("train_dataloader_shuffle")
    if anew is None or truth(anew):
        draft.carried(once, "data.shuffle", "rows are drawn in random order anyway")
        return
    given.take(anew.key)
    if once is not None and not truth(once):
        draft.carry(once, "data.shuffle", False)
        draft.carried(anew, "data.shuffle")
    else:
        draft.otherwise(
            anew, "one random order there, another in each epoch here", "data.shuffle", changes=True
        )


def _task(given: Given, draft: Draft, task: GivenKey) -> None:
    """A classifier has a head; other tasks are not here."""
    if task.value != "seq_cls":
        raise task.refused(f"got {task.value}; causal_lm and seq_cls are converted")
    labels, problem = given.take("num_labels"), given.take("problem_type")
    count = whole(labels) if labels is not None else 2
    names = {
        "single_label_classification": "single_label",
        "multi_label_classification": "multi_label",
        "regression": "regression",
    }
    kind = names.get(
        str(problem.value) if problem is not None else "", "single_label" if count > 1 else "regression"
    )
    draft.put("model.head.problem", kind, problem or task)
    if kind != "regression":
        draft.put("model.head.labels", [str(index) for index in range(count)], labels or task)
    for entry in (task, labels, problem):
        draft.carried(entry, "model.head")
    draft.notes["classifies"] = task


def _placeholder(draft: Draft, entry: GivenKey | None, text: str) -> None:
    if entry is None:
        return
    value = entry.value[-1] if isinstance(entry.value, list) and entry.value else entry.value
    known = draft.value("data.placeholders", {})
    draft.put("data.placeholders", {**known, text: str(value)}, entry)
    if isinstance(entry.value, list) and len(entry.value) > 1:
        draft.otherwise(entry, f"{value} for rows of every language", "data.placeholders", changes=True)
    else:
        draft.carried(entry, "data.placeholders")


def _sources(given: Given, draft: Draft, key: str, place: str, form: str, *, hub: bool) -> None:
    entry = given.take(key)
    if entry is None or entry.off:
        return
    listed = entry.value if isinstance(entry.value, list) else [entry.value]
    unknown = []
    stream = given.get("streaming")
    streams = stream is not None and truth(stream)
    for index, text in enumerate(map(str, listed)):
        name, _, rows = text.partition("#")
        name, _, subset = (
            name.partition(":") if "/" in name and not name.startswith(("/", ".")) else (name, "", "")
        )
        where = local(name, given)
        remote = is_hub_id(name) and where == name and not name.lower().endswith((".jsonl", ".json", ".csv"))
        if remote and not hub:
            unknown += [name] if name not in ON_THE_HUB else []
            name = ON_THE_HUB.get(name, name)
        more: dict[str, Any] = {"config": subset or None}
        if rows.isdecimal():
            more["max_rows" if streams else "sample_rows"] = int(rows)
        source(draft, f"{place}.{index}", entry, name=name, tell=False, form=form, **more)
    draft.carried(entry, place)
    if unknown:
        why = f"names of ModelScope, which the Hugging Face hub may not have: {', '.join(unknown)}"
        draft.otherwise(entry, why, place, changes=True)


TOOL = Tool(
    name="ms-swift",
    title="ms-swift",
    marks=(
        "tuner_type",
        "train_type",
        "split_dataset_ratio",
        "model_author",
        "attn_impl",
        "rlhf_type",
        "quant_bits",
        "tuner_backend",
        "lorap_lr_ratio",
        COMMAND,
    ),
    convert=convert,
    prepare=prepare,
    verbs=("sft", "pt", "rlhf"),
    defaults={
        **{
            key: value
            for key, value in TRAINER_DEFAULTS.items()
            if key not in ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps")
        },
        "tuner_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "gradient_checkpointing": True,
        "bnb_4bit_use_double_quant": True,
        "logging_steps": 5,
    },
)

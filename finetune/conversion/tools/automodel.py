"""NeMo AutoModel's YAML: targets by their dotted names."""

from typing import Any

from finetune.conversion.base import Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, number, truth, whole

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "make_squad_dataset": ("question_answer", {}),
    "HellaSwag": (
        "template",
        {
            "template.prompt": "{{ ctx }}",
            "template.completion": " {{ endings[label | int] }}",
            "template.chat": False,
        },
    ),
    "make_agent_chat_dataset": ("sharegpt", {}),
    "ChatDataset": ("messages", {}),
    "ColumnMappedTextInstructionDataset": ("question_answer", {}),
    "ColumnMappedTextInstructionIterableDataset": ("question_answer", {}),
    "NanogptDataset": ("text", {}),
}
NAMES = ("dataset_name", "path_or_dataset", "path_or_dataset_id")


def prepare(given: Given) -> None:
    """LoRA's defaults where there is a peft section; a scheduler's where there is one."""
    if given.under("peft"):
        given.add_defaults({"peft.dim": 8, "peft.alpha": 32, "peft.dropout": 0.0})
    if given.under("lr_scheduler"):
        given.add_defaults({"lr_scheduler.lr_decay_style": "cosine"})
        if "lr_scheduler.min_lr" not in given and isinstance(given.value("optimizer.lr"), float):
            given.add_defaults({"lr_scheduler.min_lr": given.value("optimizer.lr") * 0.01})


def convert(given: Given, draft: Draft) -> None:
    """The recipe's class, the adapter, the data sets."""
    recipe = given.take("recipe") or given.take("recipe._target_")
    if recipe is not None:
        if "NextTokenPrediction" not in str(recipe.value) or str(recipe.value).startswith("KnowledgeDistill"):
            raise recipe.refused(f"got {recipe.value}, expected a recipe for next-token prediction")
        draft.carried(recipe, "objective.kind")
    model = given.take("model._target_")
    if model is not None:
        if "CausalLM" not in str(model.value):
            raise model.refused(f"got {model.value}, expected a causal language model")
        if "from_config" in str(model.value):
            raise model.refused("training from random weights is not here; expected from_pretrained")
        draft.carried(model, "model.base")
    peft = given.take("peft._target_")
    bits = given.value("quantization.load_in_4bit") or given.value("quantization.load_in_8bit")
    if peft is not None or given.under("peft"):
        draft.put("adapter.method", "qlora" if bits else "lora", peft or "peft")
        draft.carried(peft, "adapter.method")
    else:
        draft.put("adapter.method", "full", "no peft section: all weights")
        dtype = given.get("model.torch_dtype")
        draft.put("train.weights_dtype", "bf16", dtype or "AutoModel holds weights in bf16")
    optimizer = given.take("optimizer._target_")
    if optimizer is not None:
        _optimizer(given, draft, optimizer)
    if not given.under("lr_scheduler"):
        draft.put("train.schedule", "constant", "no lr_scheduler")
    init = [given.take(f"lr_scheduler.{key}") for key in ("init_lr", "max_lr", "lr_decay_steps")]
    for entry in init:
        if entry is not None:
            draft.otherwise(
                entry,
                "the warm-up begins at 0 and the decay ends with the run",
                "train.schedule",
                changes=True,
            )
    if given.under("lr_scheduler") and "lr_scheduler.lr_warmup_steps" not in given:
        draft.put("train.warmup_ratio", 0.1, "AutoModel's default: a tenth of the steps, at most 1,000")
        draft.note("warmup", GivenKey("lr_scheduler.lr_warmup_steps", 0.1, given.shown))
    for key, place in (("dataset", "data.train.0"), ("validation_dataset", "data.evaluation.sources.0")):
        _data(given, draft, key, place)
    shuffle = given.take("dataloader.shuffle")
    if shuffle is not None:
        draft.carry(shuffle, "data.shuffle", truth(shuffle))
    batch = given.take("validation_dataloader.batch_size")
    if batch is not None:
        draft.carry(batch, "evaluate.batch_size", whole(batch))
    enabled = given.take("checkpoint.enabled")
    if enabled is not None:
        draft.carried(
            enabled, "train.save_every", "" if truth(enabled) else "not saved there; the end is, here"
        )
    epoch = given.take("step_scheduler.save_checkpoint_every_epoch")
    draft.carried(epoch, "train.save_every")
    clip = given.take("clip_grad_norm.max_norm")
    if clip is not None:
        draft.carry(clip, "train.max_gradient_norm", number(clip))
    split = given.take("packed_sequence.split_across_pack")
    strategy = given.take("packed_sequence.packing_strategy")
    packs = given.get("packed_sequence.packed_sequence_size")
    if split is not None and truth(split) and packs is not None and not packs.off:
        draft.put("data.pack_split", True, split)
    for entry in (split, strategy):
        draft.carried(entry, "data.pack_split" if entry is split else "data.pack_length_tokens")
    moe = [entry for entry in given.left() if entry.key.startswith(("model.config.", "distributed.moe."))]
    for entry in moe:
        given.take(entry.key)
        draft.otherwise(entry, "the base's config.json says it")


def _optimizer(given: Given, draft: Draft, entry: GivenKey) -> None:
    name = str(entry.value).rpartition(".")[2]
    if name not in ("Adam", "AdamW", "FusedAdam", "FlashAdamW"):
        draft.drop(entry, f"optimizer {name} is not here: adamw stands in its place")
    else:
        draft.carried(entry, "train.optimizer")
    draft.put("train.optimizer", "adam" if name == "Adam" else "adamw", entry)
    if "optimizer.weight_decay" not in given:
        draft.put("train.weight_decay", 0.01 if name == "AdamW" else 0.0, f"torch's default of {name}")


def _data(given: Given, draft: Draft, key: str, place: str) -> None:
    target = given.take(f"{key}._target_")
    if target is None:
        return
    name = str(target.value).rpartition(".")[2]
    form, more = KNOWN.get(name, ("auto", {}))
    more = dict(more)
    at = next((entry for part in NAMES if (entry := given.take(f"{key}.{part}")) is not None), None)
    if at is None:
        raise target.refused(f"{key} names no data set; expected {', '.join(NAMES)}")
    if name not in KNOWN:
        draft.otherwise(target, f"{name} is read as format auto", place, changes=True)
    else:
        draft.carried(target, f"{place}.format")
    split, config, limit = given.take(f"{key}.split"), given.take(f"{key}.name"), None
    for part in ("num_samples_limit", "limit_dataset_samples"):
        limit = given.take(f"{key}.{part}") or limit
    columns = {
        ours: str(entry.value)
        for ours in ("context", "question", "answer")
        if (entry := given.take(f"{key}.column_mapping.{ours}")) is not None
    }
    mapped = {ours: column for ours, column in columns.items() if ours != column}
    only = given.take(f"{key}.answer_only_loss_mask")
    where = at.value
    if isinstance(where, str) and where in ("rowan/hellaswag",):
        where = "Rowan/hellaswag"
    source(
        draft,
        place,
        at,
        name=str(where),
        form=form,
        split=split.value if split else None,
        config=config.value if config else None,
        columns=mapped,
        max_rows=limit.value if limit is not None else None,
        **more,
    )
    for entry in (split, config, limit, only):
        draft.carried(entry, place)
    template, length = given.take(f"{key}.chat_template"), given.take(f"{key}.seq_length")
    cut, padded = given.take(f"{key}.truncation"), given.take(f"{key}.shuffle_seed")
    if place == "data.train.0":
        if template is not None and not template.off:
            draft.put("model.chat_template", _template(template, given), template)
            draft.carried(template, "model.chat_template")
        if only is not None:
            draft.put("data.supervise", "assistant" if truth(only) else "all", only)
        cuts = cut is not None and not cut.off
        if length is not None and cuts:
            draft.note("length", length)
            draft.put("data.over_length", "truncate_end", cut or length)
        elif length is not None:
            draft.carried(length, "data.max_length_tokens", "without truncation it cuts nothing")
        draft.carried(cut, "data.over_length")
        if padded is not None:
            draft.otherwise(padded, "train.seed orders the rows", "train.seed")
    else:
        for entry in (template, length, cut, padded):
            draft.carried(entry, place, "as for the training rows")
    for part in ("context", "question", "answer"):
        entry = given.get(f"{key}.column_mapping.{part}")
        draft.carried(entry, f"{place}.columns")


def _template(entry: GivenKey, given: Given) -> str:
    from finetune.conversion.given import local

    text = str(entry.value)
    return text if "{%" in text or "{{" in text else local(text, given)


TOOL = Tool(
    name="automodel",
    title="NeMo AutoModel",
    marks=("step_scheduler.*", "*._target_", "packed_sequence.*"),
    convert=convert,
    prepare=prepare,
    interpolates=True,
    defaults={
        "step_scheduler.num_epochs": 10,
        "optimizer.betas": [0.9, 0.999],
        "rng.seed": 42,
        "clip_grad_norm.max_norm": 1.0,
    },
)

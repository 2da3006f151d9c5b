"""mlx-lm's YAML (mlx_lm.lora --config), or its options in a script."""

from pathlib import Path

from finetune.conversion.base import Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, at_least_one, local, name_list, number, truth, whole

FEATURES = (
    "train_split", "valid_split", "test_split", "prompt_feature", "completion_feature", "text_feature",
    "chat_feature",
)  # fmt: skip
"""Keys of hf_dataset: splits, and the columns of its rows."""
OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "sgd": "sgd", "adafactor": "adafactor"}


def convert(given: Given, draft: Draft) -> None:
    """Scale becomes alpha, iterations become steps, a folder its train and valid files."""
    kind = given.take("fine_tune_type")
    name = str(kind.value) if kind is not None else "lora"
    if name not in ("lora", "dora", "full"):
        raise (kind or GivenKey("fine_tune_type", name, given.shown)).refused(
            f"got {name!r}, expected lora, dora or full"
        )
    draft.put(
        "adapter.method", "full" if name == "full" else "lora", kind or "mlx-lm's default of fine_tune_type"
    )
    if name == "dora":
        draft.put("adapter.use_dora", True, kind or "")
    draft.carried(kind, "adapter.method")
    rank, scale = given.get("lora_parameters.rank"), given.take("lora_parameters.scale")
    if scale is not None and name != "full":
        alpha = number(scale) * (whole(rank) if rank is not None else 8)
        draft.put("adapter.alpha", alpha, f"{draft.comment(scale)} x rank")
        draft.otherwise(scale, f"alpha {alpha:g} over the rank is that scale", "adapter.alpha")
    keys = given.take("lora_parameters.keys")
    if keys is not None:
        draft.carry(keys, "adapter.target_modules", [str(key).rpartition(".")[2] for key in name_list(keys)])
    elif name != "full":
        draft.put("adapter.target_modules", "all-linear", "mlx-lm's default of lora_parameters.keys")
    layers = given.take("num_layers")
    if layers is not None:
        if whole(layers) < 0:
            draft.carried(layers, "adapter.layers", "all layers")
        elif name == "full":
            draft.drop(layers, f"the last {layers.value} layers there, all here")
        else:
            draft.carry(layers, "adapter.layers", f"last {whole(layers)}")
    _times(given, draft)
    optimizer = given.take("optimizer")
    meant = OPTIMIZERS.get(str(optimizer.value).lower()) if optimizer is not None else "adamw"
    if optimizer is not None and meant is None:
        draft.drop(optimizer, f"optimizer {optimizer.value} is not here: adamw stands in its place")
    draft.put("train.optimizer", meant or "adamw", optimizer or "mlx-lm")
    if optimizer is not None and meant is not None:
        draft.carried(optimizer, "train.optimizer")
    decay = given.take(f"optimizer_config.{optimizer.value}.weight_decay") if optimizer is not None else None
    draft.put(
        "train.weight_decay",
        number(decay)
        if decay is not None
        else 0.01
        if str(optimizer.value if optimizer else "") == "adamw"
        else 0.0,
        decay or "mlx-lm's optimizer",
    )
    _correction(given, draft, str(optimizer.value).lower() if optimizer is not None else "adam")
    _schedule(given, draft)
    masked = given.take("mask_prompt")
    draft.put(
        "data.supervise",
        "completion" if masked is not None and truth(masked) else "all",
        masked or "mlx-lm's default of mask_prompt",
    )
    draft.carried(masked, "data.supervise")
    _data(given, draft)
    draft.put("data.over_length", "truncate_end", "mlx-lm cuts rows at max_seq_length")
    for key in ("test", "test_batches", "val_batches", "clear_cache_threshold"):
        entry = given.take(key)
        if entry is not None:
            draft.otherwise(entry, "the loss is measured on all evaluation rows")


def _correction(given: Given, draft: Draft, name: str) -> None:
    """MLX's Adam doesn't correct its means for their beginning at 0, unless it is told to."""
    if name not in ("adam", "adamw"):
        return
    key = f"optimizer_config.{name}.bias_correction"
    entry = given.take(key) or GivenKey(key, False, given.shown)
    draft.carry(entry, "train.adam_bias_correction", truth(entry))


def _times(given: Given, draft: Draft) -> None:
    """Iterations of one micro batch each; an optimizer step every grad_accumulation_steps of them."""
    accumulation = at_least_one(given.entries["grad_accumulation_steps"])
    for key, path in (
        ("iters", "train.max_steps"),
        ("steps_per_eval", "train.evaluate_every"),
        ("save_every", "train.save_every"),
        ("steps_per_report", "train.log_every"),
    ):
        entry = given.take(key)
        if entry is None or entry.off:
            continue
        steps = max(1, whole(entry) // accumulation)
        draft.put(
            path, steps, entry if accumulation == 1 else f"{entry.key}: iterations of {accumulation} a step"
        )
        draft.carried(entry, path)


def _schedule(given: Given, draft: Draft) -> None:
    keys = [given.take(f"lr_schedule.{part}") for part in ("name", "warmup", "warmup_init", "arguments")]
    name, warmup, _, _ = keys
    draft.put("train.schedule", "constant", name or "no lr_schedule")
    if name is not None and not name.off:
        if name.value == "cosine_decay":
            draft.put("train.schedule", "cosine", name)
            draft.otherwise(name, "it falls to 0 with the last step", "train.schedule", changes=False)
        else:
            draft.drop(name, f"schedule {name.value}: constant stands in its place")
    if warmup is not None:
        draft.put("train.warmup_steps", whole(warmup), warmup)
        draft.carried(warmup, "train.warmup_steps")
        draft.note("warmup", GivenKey(warmup.key, whole(warmup), warmup.shown))
    for entry in (*keys[2:], given.take("lr_schedule")):
        draft.carried(entry, "train.schedule")


def _hub(given: Given, draft: Draft, prefix: str, at: int) -> None:
    """One data set of hf_dataset, which goes before data."""
    name = given.take(f"{prefix}.path") or given.take(f"{prefix}.name")
    if name is None:
        raise given.refused(f"{prefix} has no path")
    taken = {part: given.take(f"{prefix}.{part}") for part in FEATURES}
    asked = {part: str(entry.value) for part, entry in taken.items() if entry is not None and not entry.off}
    if "completion_feature" in asked or "prompt_feature" in asked:
        form, ours = "prompt_completion", {"prompt": "prompt_feature", "completion": "completion_feature"}
    elif "chat_feature" in asked:
        form, ours = "messages", {"messages": "chat_feature"}
    else:
        form, ours = ("text", {"text": "text_feature"}) if "text_feature" in asked else ("auto", {})
    columns = {column: asked[part] for column, part in ours.items() if asked.get(part, column) != column}
    source(draft, f"data.train.{at}", name, form=form, split=asked.get("train_split"), columns=columns)
    if "valid_split" in asked:
        place = f"data.evaluation.sources.{at}"
        source(draft, place, name, tell=False, form=form, split=asked["valid_split"], columns=columns)
    for entry in taken.values():
        draft.carried(entry, f"data.train.{at}")


def _data(given: Given, draft: Draft) -> None:
    entry = given.take("data")
    listed = given.items("hf_dataset")
    for place, prefix in enumerate(listed):
        _hub(given, draft, prefix, place)
    if entry is None or listed:
        draft.carried(entry, "data.train", "hf_dataset goes before it")
        return
    folder = Path(local(str(entry.value), given))
    if folder.is_dir():
        draft.put("data.train.0.path", str(folder / "train.jsonl"), entry)
        draft.put("data.train.0.format", "auto", entry)
        if (folder / "valid.jsonl").is_file():
            draft.put("data.evaluation.sources.0.path", str(folder / "valid.jsonl"), entry)
            draft.put("data.evaluation.sources.0.format", "auto", entry)
        draft.carried(entry, "data.train.0")
    else:
        source(draft, "data.train.0", entry)


TOOL = Tool(
    name="mlx_lm",
    title="mlx-lm",
    marks=(
        "fine_tune_type",
        "lora_parameters.*",
        "steps_per_report",
        "steps_per_eval",
        "val_batches",
        "iters",
        "grad_checkpoint",
        "lr_schedule.*",
    ),
    convert=convert,
    defaults={
        "lora_parameters.rank": 8,
        "num_layers": 16,
        "lora_parameters.scale": 20.0,
        "lora_parameters.dropout": 0.0,
        "batch_size": 4,
        "iters": 1000,
        "learning_rate": 1e-5,
        "seed": 0,
        "max_seq_length": 2048,
        "grad_accumulation_steps": 1,
        "save_every": 100,
        "steps_per_report": 10,
        "steps_per_eval": 200,
        "max_grad_norm": None,
    },
)

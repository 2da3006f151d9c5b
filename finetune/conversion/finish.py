"""What several keys mean together: the batch, packing, the schedule with its warm-up, when to evaluate and
save, the bits of the base."""

from collections.abc import Callable

from finetune.conversion.adapter_values import embedding_rate, start
from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, number, truth, whole
from finetune.conversion.judged import baseline
from finetune.conversion.long_rows import tiles
from finetune.conversion.model_values import PRECISIONS
from finetune.conversion.optimizer_values import betas, precision, schedule_free
from finetune.conversion.preference import has_reference, together
from finetune.conversion.times import times
from finetune.recipe.schema.adapter import LORA_ONLY
from finetune.recipe.tracking import TAKEN_BY

METRICS = {"rewards/accuracies": "reward_accuracy", "rewards/margins": "reward_margin"}
ACCURACY = {"reward": "reward_accuracy"}
"""Our metrics for those of trainers that learn from preferences."""
UNLIMITED = 32768
"""data.max_length_tokens where the tool has no limit: a longer row is refused, not dropped."""


def finish(draft: Draft) -> None:
    """Put together what was collected; each note becomes values of the recipe and a line."""
    for step in STEPS:
        step(draft)


def _taken(draft: Draft, name: str) -> GivenKey | None:
    return draft.notes.pop(name, None)


def _batch(draft: Draft) -> None:
    batch = draft.batch
    made = batch.whole if batch.whole is not None else batch.micro * batch.accumulation * batch.processes
    if batch.whole is not None:
        how = ", ".join(batch.keys)
    else:
        how = (
            f"micro batch {batch.micro} x accumulation {batch.accumulation} x {batch.processes} "
            f"process{'es' if batch.processes != 1 else ''}"
        )
        if batch.keys:
            how = f"{', '.join(dict.fromkeys(batch.keys))}: {how}"
    draft.put("train.global_batch_size", made, how)
    if made % batch.micro:
        raise draft.given.refused(f"a batch of {made} doesn't divide into micro batches of {batch.micro}")


def _length(draft: Draft) -> None:
    entry = _taken(draft, "length")
    if entry is None or entry.value is None:
        draft.put("data.max_length_tokens", UNLIMITED, f"{draft.title} has no limit of its own here")
        draft.put("data.over_length", "refuse", "so that no row is lost")
        draft.carried(entry, "data.max_length_tokens")
        return
    draft.carry(entry, "data.max_length_tokens", whole(entry))


def _packing(draft: Draft) -> None:
    switch, length = _taken(draft, "packing"), _taken(draft, "pack_length")
    packs = (switch is not None and truth(switch)) or (
        switch is None and length is not None and not length.off
    )
    by = length if length is not None and not length.off else switch
    draft.carried(switch, "data.pack_length_tokens", "" if packs else "rows are padded")
    draft.carried(length, "data.pack_length_tokens", "" if packs else "rows are padded")
    if not packs or by is None:
        draft.remove("data.attention")
        return
    if by is length:
        size = whole(by)
        if draft.value("data.max_length_tokens", 0) > size:
            draft.put("data.max_length_tokens", size, draft.comment(by))
    else:
        size = draft.value("data.max_length_tokens")
    draft.put("data.pack_length_tokens", size, by)


def _held_out(draft: Draft) -> None:
    entry = _taken(draft, "held_out")
    if entry is None:
        return
    if entry.off:
        draft.carried(entry, "data.evaluation", "nothing is held out")
    elif number(entry) < 1:
        draft.carry(entry, "data.evaluation.fraction", number(entry))
    else:
        draft.carry(entry, "data.evaluation.rows", whole(entry))


def _supervise(draft: Draft) -> None:
    on_inputs, masked, last = (_taken(draft, name) for name in ("on_inputs", "masked", "mask_history"))
    if on_inputs is not None:
        draft.carry(on_inputs, "data.supervise", "all" if truth(on_inputs) else "assistant")
    if masked is not None:
        if masked.value is None:
            draft.carried(masked, "data.supervise")
        else:
            draft.carry(masked, "data.supervise", "assistant" if truth(masked) else "all")
    if last is not None:
        if truth(last):
            draft.carry(last, "data.supervise", "last")
        else:
            draft.carried(last, "data.supervise")


def _warmup(draft: Draft) -> None:
    entry = _taken(draft, "warmup")
    schedule = draft.notes.get("schedule")
    plain_constant = schedule is not None and str(schedule.value).lower() == "constant"
    if entry is None or entry.off or plain_constant:
        if entry is not None:
            draft.carried(
                entry,
                "train.warmup_ratio",
                "a constant rate has no warm-up there" if plain_constant and not entry.off else "",
            )
        draft.put("train.warmup_ratio", 0.0, f"{draft.title} has no warm-up here")
        return
    value = number(entry)
    if value < 1:
        draft.carry(entry, "train.warmup_ratio", value)
    else:
        draft.carry(entry, "train.warmup_steps", whole(entry))


def _minimum(draft: Draft) -> None:
    ratio, rate = _taken(draft, "minimum_ratio"), _taken(draft, "minimum_rate")
    entry = ratio or rate
    if entry is None:
        if draft.value("train.schedule") == "cosine_with_minimum":
            draft.put("train.minimum_learning_rate_fraction", 0.0, f"{draft.title} has no minimum here")
        return
    if entry.off or draft.value("train.schedule", "cosine") not in ("cosine", "cosine_with_minimum"):
        draft.carried(entry, "train.minimum_learning_rate_fraction", "no minimum")
        if draft.value("train.schedule") == "cosine_with_minimum":
            draft.put("train.minimum_learning_rate_fraction", 0.0, entry)
        return
    value = number(entry)
    if entry is rate:
        value = float(f"{value / float(draft.value('train.learning_rate', 2e-4)):.6g}")
    if value >= 1:
        draft.put("train.schedule", "constant", draft.comment(entry))
        draft.otherwise(entry, "the rate never falls: schedule constant", "train.schedule")
        return
    draft.put("train.schedule", "cosine_with_minimum", draft.comment(entry))
    draft.carry(entry, "train.minimum_learning_rate_fraction", value)


def _best(draft: Draft) -> None:
    switch, metric = _taken(draft, "best"), _taken(draft, "best_metric")
    name = "loss" if metric is None or metric.value is None else str(metric.value).removeprefix("eval_")
    name = (
        ACCURACY.get(draft.value("objective.kind"), name) if name == "accuracy" else METRICS.get(name, name)
    )
    if switch is not None:
        if truth(switch):
            draft.carry(switch, "train.best_by", name)
        else:
            draft.carried(switch, "train.best_by", "the last step is the result")
    draft.carried(metric, "train.best_by")


def _bits(draft: Draft) -> None:
    bits, double, kind, compute = (
        _taken(draft, name) for name in ("bits", "double", "quant_type", "compute")
    )
    method = draft.value("adapter.method", "lora")
    if bits is not None and method == "full":
        raise bits.refused("a quantised base is trained with an adapter, and this file asks for all weights")
    if bits is not None:
        draft.put("adapter.method", "qlora", bits)
        if bits.value == 8:
            draft.put("adapter.quantization", "int8", bits)
    quantised = draft.value("adapter.method") == "qlora"
    four = quantised and draft.value("adapter.quantization") != "int8"
    if double is not None and four:
        draft.put("adapter.double_quantization", truth(double), double)
    if kind is not None:
        if four and kind.value not in (None, "nf4", "bnb", "BNB"):
            draft.drop(kind, f"{kind.value} is not here: the base is quantised to NF4")
        else:
            draft.carried(kind, "adapter.method")
    if compute is not None and four and compute.value is not None:
        meant = PRECISIONS.get(str(compute.value).lower())
        have = draft.value("train.precision", "auto")
        if have == "auto" and meant is not None:
            draft.put("train.precision", meant, compute)
        elif meant != have:
            draft.otherwise(compute, f"the arithmetic is in {have}", "train.precision", changes=True)


def _full(draft: Draft) -> None:
    if draft.value("adapter.method") != "full":
        draft.notes.pop("pure_bf16", None)
        draft.remove("train.weights_dtype")
        return
    for name in LORA_ONLY:
        draft.remove(f"adapter.{name}")
    draft.remove("train.loraplus_lr_ratio")
    entry = _taken(draft, "pure_bf16")
    if entry is not None:
        draft.put("train.weights_dtype", "bf16", entry)
    if "train.weights_dtype" in draft.values and draft.value("train.optimizer", "adamw") != "adamw":
        key = draft.values["train.weights_dtype"].comment
        draft.remove("train.weights_dtype")
        if key in draft.given:
            how = "weights in float32, which takes more memory: only adamw rounds its updates to bf16"
            draft.otherwise(draft.given.entries[key], how, "train.weights_dtype")


def _project(draft: Draft) -> None:
    trackers = draft.value("tracking.tracker", "trackio")
    named = trackers if isinstance(trackers, list) else [trackers]
    for key in ("project", "wandb_mode"):
        if not {*TAKEN_BY[key]} & {*named}:
            draft.remove(f"tracking.{key}")


def _steps_or_epochs(draft: Draft) -> None:
    if "train.max_steps" in draft.values and "train.epochs" in draft.values:
        epochs, steps = draft.values["train.epochs"], draft.values["train.max_steps"]
        draft.values["train.max_steps"].comment = f"{steps.comment}, which goes before {epochs.comment}"
        draft.remove("train.epochs")


def _streaming(draft: Draft) -> None:
    entry = _taken(draft, "streaming")
    if entry is None:
        return
    if not truth(entry):
        draft.carried(entry, "data.streaming", "all rows are read")
    elif has_reference(draft):
        draft.otherwise(entry, "all rows are read before training: the reference is computed of each")
    elif "train.max_steps" not in draft.values or any(
        path.startswith("data.evaluation.fraction") for path in draft.values
    ):
        draft.otherwise(entry, "all rows are read before training: a stream needs max_steps and no fraction")
    else:
        draft.carry(entry, "data.streaming.buffer_rows", 10_000)
        if any(path.startswith("data.evaluation.sources") for path in draft.values):
            draft.put("data.clean.leakage", "keep", entry)


def _the_rest(draft: Draft) -> None:
    entry = _taken(draft, "deduplicate")
    if entry is not None and truth(entry):
        draft.carry(entry, "data.clean.duplicates", "drop")
    elif entry is not None:
        draft.carried(entry, "data.clean.duplicates")
    entry = _taken(draft, "loss_scale")
    if entry is not None:
        meant = {"default": "assistant", "last_round": "last", "all": "all"}.get(str(entry.value))
        if entry.value == "ignore_empty_think":
            draft.carry(entry, "data.loss_weights", {r"(?s)<think>\s*</think>\s*": 0})
        elif meant is None:
            draft.drop(entry, f"loss_scale {entry.value}: write data.loss_weights by hand")
        else:
            draft.carry(entry, "data.supervise", meant)
    for name in ("shares", "max_rows", "dataset", "held_out_sources"):
        entry = _taken(draft, name)
        if entry is None:
            continue
        if entry.off:
            draft.carried(entry)
        else:
            draft.drop(entry, "not understood where it stands")


STEPS: tuple[Callable[[Draft], None], ...] = (
    _batch,
    _length,
    together,
    baseline,
    _packing,
    _held_out,
    _supervise,
    _warmup,
    _minimum,
    betas,
    schedule_free,
    precision,
    times,
    _best,
    _bits,
    start,
    embedding_rate,
    _full,
    tiles,
    _project,
    _steps_or_epochs,
    _streaming,
    _the_rest,
)

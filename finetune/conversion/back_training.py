"""The training section as another tool's file says it: batch, schedule, optimizer, precision, how often."""

from typing import TYPE_CHECKING, Any

from finetune.conversion.given import ConvertError
from finetune.conversion.optimizer_values import takes
from finetune.recipe.schema.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from finetune.conversion.back import Back

SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_minimum": "cosine_with_min_lr",
}
TIMES = {"evaluate_every": "eval", "save_every": "save", "log_every": "logging"}
"""How often: the beginning of their keys' names."""


def training(back: "Back") -> None:
    """Everything of it whose value is another there."""
    for step in (_batch, _schedule, _precision, _noise, _tracker, _times, _best):
        step(back)


def _batch(back: "Back") -> None:
    train = back.loaded.recipe.train
    wrong = train.uneven_over(back.processes)
    if wrong is not None:
        raise ConvertError(wrong)
    steps = train.global_batch_size // (train.micro_batch_size * back.processes)
    back.put(
        "gradient_accumulation_steps",
        steps,
        f"train.global_batch_size {train.global_batch_size} over {back.processes} process(es)",
    )
    back.told("train.global_batch_size", "carried", "gradient_accumulation_steps")


def _schedule(back: "Back") -> None:
    train = back.loaded.recipe.train
    key = "lr_scheduler" if back.tool == "axolotl" else "lr_scheduler_type"
    meant = SCHEDULES.get(train.schedule)
    if meant is None:
        back.told("train.schedule", "dropped", how=f"{train.schedule} has no such name there", changes=True)
    else:
        if train.schedule == "cosine_with_minimum" and back.tool == "axolotl":
            meant = "cosine"
        back.put(key, meant, "train.schedule")
        back.told("train.schedule", "carried", key)
    if train.schedule == "cosine_with_minimum":
        fraction = train.minimum_learning_rate_fraction
        name = "cosine_min_lr_ratio" if back.tool == "axolotl" else "lr_scheduler_kwargs"
        back.put(
            name,
            fraction if back.tool == "axolotl" else {"min_lr_rate": fraction},
            "train.minimum_learning_rate_fraction",
        )
        back.told("train.minimum_learning_rate_fraction", "carried", name)
    optimizer = "optimizer" if back.tool == "axolotl" else "optim"
    if train.optimizer == "adam" and train.weight_decay:
        raise ConvertError(
            f"train.optimizer: adam couples train.weight_decay, and {back.tool} has no such optimizer; take "
            "adamw, or no decay"
        )
    if train.optimizer == "muon":
        raise ConvertError(
            f"train.optimizer: muon steps as long as adamw, and {back.tool}'s, where it has one, otherwise; "
            "take adamw"
        )
    if train.optimizer == "polora":
        raise ConvertError(
            f"train.optimizer: polora is in none of {back.tool}'s versions that are supported; take adamw"
        )
    plain = "adamw" if train.optimizer == "adam" else train.optimizer  # which without decay is the same
    back.put(optimizer, OPTIMIZERS.get(plain, plain), "train.optimizer")
    back.told("train.optimizer", "carried", optimizer)
    if takes(train.optimizer, "epsilon"):
        back.put("adam_epsilon", train.adam_epsilon, "train.adam_epsilon")
    back.told("train.adam_epsilon", "carried", "adam_epsilon")
    for key, beta in zip(("adam_beta1", "adam_beta2"), train.adam_betas, strict=True):
        if takes(train.optimizer, "betas"):
            back.put(key, beta, "train.adam_betas")
    back.told("train.adam_betas", "carried", "adam_beta1, adam_beta2")
    norm = train.max_gradient_norm
    back.put("max_grad_norm", 0.0 if norm is None else norm, "train.max_gradient_norm")
    back.told("train.max_gradient_norm", "carried", "max_grad_norm")


def _precision(back: "Back") -> None:
    precision = back.loaded.recipe.train.precision
    back.put(
        "bf16",
        {"auto": "auto" if back.tool == "axolotl" else True, "bf16": True}.get(precision, False),
        "train.precision",
    )
    if precision == "fp16":
        back.put("fp16", True, "train.precision")
    if precision == "fp32" and back.tool == "llamafactory":
        back.differs("train.precision", "bf16", "without bf16 and fp16 the base's own type is taken there")
    else:
        back.told("train.precision", "carried", "bf16")


def _noise(back: "Back") -> None:
    noise = back.plain["train"].get("neftune_alpha")
    if noise is not None:
        back.put("neftune_noise_alpha", noise, "train.neftune_alpha")
        how = "the noise is by document here, by padded row there"
        back.told("train.neftune_alpha", "otherwise", "neftune_noise_alpha", how, changes=True)


def _tracker(back: "Back") -> None:
    """Axolotl sends to wandb where there is a project."""
    tracking = back.plain["tracking"]
    if back.tool == "axolotl":
        if "wandb" in tracking["tracker"]:
            back.put("wandb_project", tracking["project"], "tracking.tracker")
            for path in ("tracking.tracker", "tracking.project"):
                back.told(path, "carried", "wandb_project")
    elif tracking["tracker"] in ("wandb", "none"):
        back.put("report_to", tracking["tracker"], "tracking.tracker")
        back.told("tracking.tracker", "carried", "report_to")


def _times(back: "Back") -> None:
    """Steps, a part of all steps, each epoch, or never; of Axolotl how often in an epoch."""
    for what, theirs in TIMES.items():
        path, value = f"train.{what}", back.plain["train"].get(what)
        if value is None:
            continue
        key, said = _time(theirs, value)
        if not key:
            back.told(path, "dropped", how=f"{value} can't be said there", changes=False)
            continue
        back.put(key, said, path)
        back.told(path, "carried", key)
        if theirs == "eval" and key == "eval_steps" and back.tool != "axolotl":
            back.put("eval_strategy", "steps", path)


def _time(theirs: str, value: Any) -> tuple[str, Any]:
    """The key, and its value; no key for what their trainer can't be told."""
    if value in ("1 epoch", "never"):
        return f"{theirs}_strategy", "epoch" if value == "1 epoch" else "no"
    if isinstance(value, str) and value.endswith("%"):
        return f"{theirs}_steps", float(value[:-1]) / 100
    return ("", None) if isinstance(value, str) else (f"{theirs}_steps", value)


def _best(back: "Back") -> None:
    """The best by loss, which their trainer has too."""
    if back.loaded.recipe.train.best_by == "loss":
        for key in ("eval_strategy", "eval_steps"):  # or else their trainer refuses it
            if key in back.values:
                back.put(key.replace("eval", "save"), back.values[key][0], "train.best_by")
        back.put("load_best_model_at_end", True, "train.best_by")
        back.put("metric_for_best_model", "eval_loss", "train.best_by")
        back.told("train.best_by", "carried", "load_best_model_at_end, metric_for_best_model")

"""The train section in transformers' words."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainingArguments

from finetune.engines.base import Engine
from finetune.errors import ModelError
from finetune.models.device import Precision
from finetune.recipe.lock import Rules
from finetune.recipe.schema.optimizers import OPTIMIZERS, OURS, known_optimizer
from finetune.recipe.schema.train import TrainSection
from finetune.scoring.metrics import lower_is_better
from finetune.training.optimization.intervals import RunIntervals
from finetune.training.optimization.schedule import warmup_steps

NEVER_STEPS = 1_000_000_000
"""Larger than any run's number of steps, so that evaluating and saving happen only at the end."""


def optimizer_name(asked: str) -> str:
    """transformers' name of the optimizer. Raises ModelError for one that this machine can't honour."""
    name, found = OPTIMIZERS.get(asked, asked), known_optimizer(asked)
    if found is None:
        raise ModelError(
            f"train.optimizer: got {asked!r}; expected one of {', '.join(OPTIMIZERS)}, or of transformers' "
            "OptimizerNames."
        )
    if found.refused:
        raise ModelError(f"train.optimizer: {asked} {found.refused}.")
    if name.startswith("paged_") and not torch.cuda.is_available():
        raise ModelError(
            f"train.optimizer: {asked} pages its state to the host, which needs a CUDA device; "
            "without one it would silently be an ordinary optimizer. Use adamw_8bit."
        )
    if asked == "adamw" and torch.cuda.is_available():
        return "adamw_torch_fused"  # the same steps, without a temporary as large as all trained weights
    # The trainer is given these themselves.
    return OPTIMIZERS["adamw"] if name in OURS else name


SCHEDULES = {
    "constant": "constant_with_warmup",
    "cosine_with_minimum": "cosine_with_min_lr",
    "wsd": "warmup_stable_decay",
    "step": "constant_with_warmup",
}
"""transformers' names of schedules, for trackers that log its arguments; the rates are
finetune.training.optimization.schedule's."""


def training_arguments(
    train: TrainSection,
    *,
    engine: Engine,
    precision: Precision,
    total_steps: int,
    intervals: RunIntervals,
    accumulation: int,
    evaluation_batch_size: int,
    evaluates: bool,
    evaluate_first: bool,
    checkpoints: Path,
    rules: Rules,
) -> TrainingArguments:
    """Everything that transformers' Trainer is told. What it must not do itself (report, filter NaN, rotate)
    is off."""
    on_cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    own = {"bf16": precision.name == "bf16"} | engine.trainer_options(on_cpu=on_cpu)
    # The launcher's own word on precision never counts: the recipe's does.
    os.environ["ACCELERATE_MIXED_PRECISION"] = {"fp32": "no"}.get(precision.name, precision.name)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=total_steps,
        per_device_train_batch_size=train.micro_batch_size,
        per_device_eval_batch_size=evaluation_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULES.get(train.schedule, train.schedule),
        warmup_steps=warmup_steps(train, total_steps),
        optim=optimizer_name(train.optimizer),
        adam_beta1=train.adam_betas[0],
        adam_beta2=train.adam_betas[1],
        adam_epsilon=train.adam_epsilon,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_gradient_norm or 0.0,
        neftune_noise_alpha=train.neftune_alpha
        if rules.training == 1
        else None,  # later it is finetune.models.kernels.noise's
        fp16=precision.name == "fp16",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # rotary frequencies, which are the same in all processes
        seed=train.seed,
        logging_steps=intervals.log.every or NEVER_STEPS,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=(intervals.evaluate.every or NEVER_STEPS) if evaluates else None,
        eval_on_start=evaluates and evaluate_first,
        save_strategy="steps",
        save_steps=intervals.save.every or NEVER_STEPS,
        save_total_limit=None,
        metric_for_best_model=f"eval_{train.best_by or 'loss'}" if evaluates else None,
        greater_is_better=not lower_is_better(train.best_by or "loss") if evaluates else None,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,  # a resumed feed begins at its step by itself
        label_names=["shift_labels"],
        **own,
    )
    arguments.bf16 = precision.name == "bf16"
    engine.settle_accelerate(on_cpu=on_cpu)
    if on_cpu:
        # Of several processes accelerate says cpu:0, which torch takes for another device than the cpu of a
        # loaded base: it would copy every weight, out of the file that they are mapped from.
        cast(Any, arguments).distributed_state.device = cpu = torch.device("cpu")
        cast(Any, arguments)._setup_devices = cpu
    # With several GPUs and no launcher the Trainer would wrap the model in nn.DataParallel, which splits each
    # micro-batch and averages losses that are already shares of the step's mean. One device is used.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments

"""AdamW without a schedule: the steps are the package's, and what is evaluated and saved is the average."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFree
from transformers import TrainerCallback

from finetune.training import run
from tests.support.processes import EXACT, adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import MakeRecipe, found

TRAIN = EXACT | {
    "optimizer": "schedule_free_adamw", "schedule": "constant", "max_steps": 6, "weight_decay": 0.1,
    "warmup_steps": 2, "micro_batch_size": 2, "max_gradient_norm": None,
}  # fmt: skip


def of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_run_s_steps_are_the_package_s(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The same y, bit for bit, as by the package with its own warm-up, and its x is what the model holds after
    each step; with accumulation."""
    trainer = trainer_of(make_recipe(train=TRAIN), tmp_path)
    copies = {name: weight.clone() for name, weight in of(trainer.model).items()}
    theirs = AdamWScheduleFree(copies.values(), lr=1e-2, weight_decay=0.1, warmup_steps=2)
    theirs.train()
    steps = 0

    def beside(*_: Any) -> None:
        assert_equal(copies, of(trainer.model))
        for name, weight in trainer.model.named_parameters():
            if weight.requires_grad:
                copies[name].grad = weight.grad.clone()
        theirs.step()

    class Averages(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal steps
            steps += 1
            held = {name: weight.clone() for name, weight in copies.items()}
            theirs.eval()
            assert_equal(copies, of(trainer.model))
            theirs.train()
            for name, weight in held.items():
                copies[name].copy_(weight)

    trainer.add_callback(Averages())
    trainer.create_optimizer().register_step_pre_hook(beside)
    trainer.train()
    assert steps == 6


def test_evaluating_changes_no_bit_and_measures_what_is_saved(make_recipe: MakeRecipe) -> None:
    """A run that evaluates after each step ends in the same adapter, and its last evaluation is that
    adapter's."""
    quiet = start(make_recipe(train=TRAIN), "quiet")
    watched = start(make_recipe(train=TRAIN | {"evaluate_every": 1, "save_every": 1}), "watched")
    assert_equal(adapter_of(quiet), adapter_of(watched))
    further = start(
        make_recipe(
            adapter={"rank": 4, "continue_from": str(watched.adapter)}, train=TRAIN | {"max_steps": 1}
        ),
        "further",
    )
    before, after = (
        further.read_summary()["evaluation_loss_before"],
        watched.read_summary()["evaluation_loss"],
    )
    assert before == after


def test_a_resumed_run_is_the_same_bit_for_bit(make_recipe: MakeRecipe) -> None:
    """A checkpoint has x as its adapter, and y and z beside it."""
    folder = start(make_recipe(train=TRAIN))
    whole = adapter_of(folder)
    folder.write_summary({"status": "running"})
    shutil.rmtree(folder.checkpoints / "checkpoint-6")
    run.resume(folder.path, recipe=None)
    assert_equal(adapter_of(folder), whole)


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (
            "",
            "train.schedule  optimizer schedule_free_adamw averages weights in place of a decay, and this is "
            "cosine; set schedule: constant (warmup_ratio is taken)",
        ),
        (
            ", schedule: constant, adam_betas: [0.0, 0.999]",
            "train.adam_betas  optimizer schedule_free_adamw divides by the first, which is 0; take 0.9",
        ),
        (
            ", schedule: constant, precision: fp16",
            "train.precision  fp16 leaves out steps that overflow, which optimizer schedule_free_adamw must see; "
            "take bf16 or fp32",
        ),
        (", schedule: constant, warmup_ratio: 0.1", None),
    ],
)
def test_schedules_that_fall_are_refused(train: str, problem: str | None) -> None:
    """By name, the default one too."""
    assert found(f"{{train: {{optimizer: schedule_free_adamw{train}}}}}") == ([problem] if problem else [])

"""Learning rates of parts of the weights, Adam's own numbers, warm-up in steps, step decay: by AdamW written
out."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

from finetune.recipe.schema.optimizers import KNOWN
from finetune.recipe.schema.train import TrainSection
from finetune.training import run
from finetune.training.optimization.intervals import interval_of
from finetune.training.optimization.parameter_groups import Rates
from finetune.training.optimization.schedule import rate_factor
from tests.support.messages import hearing
from tests.support.processes import adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import MakeRecipe, found

KNOBS: dict[str, Any] = {
    "micro_batch_size": 4, "precision": "fp32", "learning_rate": 1e-2, "max_steps": 7, "weight_decay": 0.1,
    "max_gradient_norm": None, "adam_betas": [0.8, 0.9], "adam_epsilon": 1e-3, "loraplus_lr_ratio": 4,
    "embedding_learning_rate": 1e-3, "warmup_steps": 2, "schedule": "step", "step_decay_factor": 0.5,
    "step_decay_every": "3 steps", "save_every": 4,
}  # fmt: skip
FACTORS = [0.5, 1, 1, 0.5, 0.5, 0.5, 0.25]


class Recorder(TrainerCallback):
    """The weights before the first step, and the gradients of each."""

    def __init__(self) -> None:
        self.start: dict[str, torch.Tensor] = {}
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not self.start:
            self.start = {name: weight.detach().double().clone() for name, weight in trained.items()}
        self.gradients.append({name: weight.grad.double().clone() for name, weight in trained.items()})


def adam(
    start: torch.Tensor, gradients: list[torch.Tensor], rate: float, *, coupled: bool, corrected: bool
) -> torch.Tensor:
    """Where AdamW, or Adam with coupled decay, comes to by its paper's formulas, with the numbers of KNOBS, in
    float64; with or without the correction of its means."""
    (one, two), epsilon = KNOBS["adam_betas"], KNOBS["adam_epsilon"]
    value, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, (gradient, factor) in enumerate(zip(gradients, FACTORS, strict=True), start=1):
        if coupled:
            gradient = gradient + KNOBS["weight_decay"] * value
        mean = one * mean + (1 - one) * gradient
        square = two * square + (1 - two) * gradient**2
        if not coupled:
            value = value - rate * factor * KNOBS["weight_decay"] * value
        corrections = (1 - one**step, 1 - two**step) if corrected else (1.0, 1.0)
        root = torch.sqrt(square / corrections[1]) + epsilon
        value = value - rate * factor * (mean / corrections[0]) / root
    return value


@pytest.mark.parametrize(
    ("optimizer", "corrected"), [("adamw", True), ("adam", True), ("adam", False), ("adamw", False)]
)
def test_each_part_is_trained_at_its_rate(
    make_recipe: MakeRecipe, tmp_path: Path, optimizer: str, corrected: bool
) -> None:
    """A, B and the head come to where AdamW (or Adam) written out comes to, each by its own learning rate."""
    recipe = make_recipe(
        train=KNOBS | {"optimizer": optimizer, "adam_bias_correction": corrected},
        adapter={"rank": 4, "modules_to_save": ["lm_head"]},
    )
    trainer, recorder = trainer_of(recipe, tmp_path), Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    rates = {"lora_A": 1e-2, "lora_B": 4e-2, "lm_head": 1e-3}
    kinds = set()
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            kind = next(part for part in rates if part in name)
            kinds.add(kind)
            gradients = [step[name] for step in recorder.gradients]
            expected = adam(
                recorder.start[name],
                gradients,
                rates[kind],
                coupled=optimizer == "adam",
                corrected=corrected,
            )
            assert torch.allclose(weight.detach().double(), expected, rtol=1e-4, atol=1e-6), name
    assert kinds == set(rates)


@pytest.mark.parametrize("corrected", [True, False])
def test_the_log_has_each_rate_and_a_resumed_run_is_the_same(
    make_recipe: MakeRecipe, corrected: bool
) -> None:
    """metrics.jsonl has the rate that each part's step was taken with; resumed from its middle, a run ends
    the same bit for bit."""
    knobs = KNOBS | {"adam_bias_correction": corrected}
    folder = start(make_recipe(train=knobs, adapter={"rank": 4, "modules_to_save": ["lm_head"]}))
    entries = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    logged = [entry for entry in entries if "train/learning_rate" in entry]
    for name, rate in (("", 1e-2), ("_lora_b", 4e-2), ("_embeddings", 1e-3)):
        found = [entry[f"train/learning_rate{name}"] for entry in logged]
        assert found == pytest.approx([rate * factor for factor in FACTORS])
    whole = adapter_of(folder)
    shutil.rmtree(folder.adapter)
    shutil.rmtree(folder.checkpoints / "checkpoint-7")
    folder.write_summary({"status": "running"})
    run.resume(folder.path, recipe=None)
    assert_equal(adapter_of(folder), whole)


def test_the_embedding_has_its_rate_where_all_weights_train(tmp_path: Path) -> None:
    """By names of the model: embedding, head and rows of new tokens, and no adapter on the head."""
    rates = Rates(None, 1e-3)
    for name, kind in {
        "model.embed_tokens.weight": "embeddings",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default": "embeddings",
        "base_model.model.lm_head.modules_to_save.default.weight": "embeddings",
        "base_model.model.lm_head.lora_A.default.weight": None,
        "model.layers.0.mlp.up_proj.weight": None,
    }.items():
        assert rates.kind_of(name) == kind
    assert Rates(2.0, None).kind_of("x.q_proj.lora_B.default.weight") == "lora_b"


def test_a_warm_up_may_be_longer_than_the_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Step k of a warm-up of 8 steps has k/8 of the rate; a run of 4 steps ends in its middle, and says so."""
    said: list[str] = []
    with hearing(said.append):
        trainer = trainer_of(
            make_recipe(train={"micro_batch_size": 4, "max_steps": 4, "warmup_steps": 8}), tmp_path
        )
    assert any("never reaches train.learning_rate" in line for line in said)
    assert [trainer.rate_factor(step) for step in (1, 2, 3, 4)] == [1 / 8, 2 / 8, 3 / 8, 4 / 8]


@pytest.mark.parametrize("warmup", [0, 3])
def test_step_decay_is_torchs(warmup: int) -> None:
    """Without warm-up the rates are those of torch's StepLR, stepped once an epoch of 5 steps."""
    train = TrainSection(schedule="step", step_decay_factor=0.85, warmup_steps=warmup)
    falls = interval_of(train.step_decay_every, 20, lambda epochs: math.ceil(5 * epochs)).steps(20)
    assert falls == [5, 10, 15, 20]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.85)
    for step in range(1, 21):
        rise = min(1.0, step / warmup) if warmup else 1.0
        assert rate_factor(train, 20, step, rule=2, falls=falls) == pytest.approx(
            rise * theirs.get_last_lr()[0]
        )
        optimizer.step()
        if step % 5 == 0:
            theirs.step()


def test_the_optimizers_are_those_of_transformers() -> None:
    """The table that is read without importing transformers has its names, no more and no less."""
    assert set(KNOWN) == {str(member.value) for member in OptimizerNames}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("optimizer: sgd", "optimizer sgd has no such form; remove this, or take adamw"),
        ("optimizer: adamw_8bit", "optimizer adamw_8bit has no such form; remove this, or take adamw"),
        ("weights_dtype: bf16", "weights in bf16 have the paper's AdamW; remove this"),
    ],
)
def test_means_without_correction_are_adams(keys: str, message: str) -> None:
    """Other optimizers have no such form."""
    adapter = "adapter: {method: full}" if "bf16" in keys else "adapter: {method: lora}"
    problems = found(f"{adapter}\ntrain: {{{keys}, adam_bias_correction: false, max_steps: 2}}")
    assert f"train.adam_bias_correction  {message}" in problems

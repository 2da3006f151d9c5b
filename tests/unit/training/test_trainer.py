"""The trainer is exact: splits, evaluation, refusal of steps that aren't finite."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from finetune.engines.memory import memory_advice
from finetune.errors import ModelError, TrainingError
from finetune.evaluation.losses import token_loss
from finetune.models.batch import padded_batch
from finetune.models.loss import IGNORE_INDEX
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.optimizers import OPTIMIZERS
from finetune.runs.tracking.base import NoTracker
from finetune.training import build, run
from finetune.training.arguments import optimizer_name
from finetune.training.callbacks.metrics_log import MetricsLog
from finetune.training.inputs import build_inputs
from tests.support.messages import hearing
from tests.support.processes import trained_weights, trainer_of
from tests.support.recipes import MakeRecipe


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_micro_batch_splits_agree(
    make_recipe: MakeRecipe, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """1 x 8, 4 x 2 and 8 x 1 end in the same adapter after an epoch whose last window is partial (36 rows of
    8)."""
    results = {}
    for micro in (8, 2, 1):
        # Plain SGD: Adam divides by the root of squared gradients, and makes noise of rounding errors near
        # zero.
        recipe = make_recipe(
            train={"micro_batch_size": micro, "precision": "fp32", "optimizer": "sgd", "learning_rate": 0.1}
        )
        results[micro] = trained_weights(trainer_of(recipe, tmp_path / str(micro), dtype))
    for micro in (2, 1):
        difference = (results[micro] - results[8]).norm() / results[8].norm()
        assert difference <= tolerance, micro


def test_the_step_loss_is_the_mean_over_supervised_tokens(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The logged loss of step 1 is (sum of token losses) / (supervised tokens) of its 8 rows, by plain
    cross-entropy."""
    trainer = trainer_of(
        make_recipe(train={"micro_batch_size": 1, "precision": "fp32", "max_steps": 1}), tmp_path
    )
    packs = next(trainer.feed.global_batches())
    batch = padded_batch(
        [document for pack in packs for document in trainer.feed.documents_of(pack)], pad_token_id=0
    )
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = functional.cross_entropy(
            logits.flatten(0, 1), batch["shift_labels"].flatten(), ignore_index=IGNORE_INDEX, reduction="mean"
        )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_evaluation_loss_is_the_exact_token_mean(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The evaluation loss doesn't depend on the batch size, and is the mean over tokens."""
    losses = []
    for size in (1, 3, 16):
        trainer = trainer_of(make_recipe(evaluate={"batch_size": size}), tmp_path / str(size))
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    total = count = 0.0
    for document in trainer.evaluation:
        batch = padded_batch([document], pad_token_id=0)
        with torch.no_grad():
            logits = trainer.model(input_ids=batch["input_ids"]).logits[0]
        total += functional.cross_entropy(
            logits, batch["shift_labels"][0], ignore_index=IGNORE_INDEX, reduction="sum"
        ).item()
        count += int(batch["shift_labels"].ne(IGNORE_INDEX).sum())
    assert losses[0] == pytest.approx(total / count, rel=1e-5)


def test_training_evaluates_the_rows_that_evaluate_scores(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With evaluate.max_rows, the evaluation loss is that of the first rows, as `finetune evaluate` measures
    it."""
    trainer = trainer_of(make_recipe(evaluate={"max_rows": 2}), tmp_path)
    every = trainer_of(make_recipe(), tmp_path).evaluation
    assert list(trainer.evaluation) == list(every[:2])
    expected = token_loss(trainer.model, every[:2], batch_size=2).mean
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.evaluate()["eval_loss"] != pytest.approx(
        token_loss(trainer.model, every, batch_size=2).mean, rel=1e-6
    )


def test_a_non_finite_loss_stops_before_the_update(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """NaN in the weights ends the run at step 1, naming step and rows; no trained weight changes."""
    trainer = trainer_of(make_recipe(), tmp_path)
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[:] = math.nan
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    with pytest.raises(
        TrainingError, match=r"loss is nan at step 1; nothing was updated. Rows: .*rows.json row \d+"
    ):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if name in before)


def test_a_non_finite_gradient_stops_before_the_update(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A finite loss with an infinite gradient is refused as well."""
    trainer = trainer_of(make_recipe(), tmp_path)
    weight = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = weight.detach().clone()
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) at step 1"):
        trainer.train()
    assert torch.equal(weight, before)


def test_loss_scaling_gives_up_on_a_gradient_that_stays_infinite(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Under fp16's loss scaling a few overflows are skipped; 20 in a row end the run, with the weights as
    they were."""
    recipe = make_recipe(
        train={"micro_batch_size": 8, "precision": "fp32", "max_steps": 60, "warmup_ratio": 0.0}
    )
    trainer = trainer_of(recipe, tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    weight = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    # Infinite in the first three steps, then well, then infinite for good.
    weight.register_hook(
        lambda gradient: gradient * (1.0 if 3 <= trainer.state.global_step < 6 else math.inf)
    )
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) at step 26"):
        trainer.train()
    assert weight.isfinite().all()
    assert weight.any()


def test_metrics_are_json_also_where_a_gradient_overflowed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A gradient norm of infinity is null in metrics.jsonl, which no strict reader refuses."""
    recipe = make_recipe(train={"micro_batch_size": 8, "precision": "fp32", "max_steps": 2})
    trainer = trainer_of(recipe, tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.add_callback(
        MetricsLog(tmp_path / "metrics.jsonl", trainer, NoTracker(), lambda step, total, metrics: None)
    )
    weight = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.train()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text.splitlines()[0])["train/gradient_norm"] is None


def test_no_memory_ends_with_advice() -> None:
    """Where torch can't have the memory, the error names the keys to change; other errors stay what they
    are."""
    with (
        pytest.raises(
            TrainingError, match=r"micro_batch_size.*max_length_tokens.*activation_checkpointing.*qlora"
        ),
        memory_advice(),
    ):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="shape"), memory_advice():
        torch.empty(2).view(3)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_each_optimizer_learns(make_recipe: MakeRecipe, tmp_path: Path, optimizer: str) -> None:
    """With every optimizer of the table the evaluation loss falls."""
    rate = {"sgd": 1.0, "lion": 1e-3}.get(optimizer, 1e-2)
    recipe = make_recipe(
        adapter={"method": "full" if optimizer == "muon" else "lora"},
        train={"micro_batch_size": 8, "precision": "fp32", "optimizer": optimizer, "learning_rate": rate},
    )
    trainer = trainer_of(recipe, tmp_path)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.02


def test_activation_checkpointing_changes_no_gradient(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The adapter after an epoch is the same with and without recomputed activations."""
    results = []
    for checkpointing in (False, True):
        train = {"micro_batch_size": 8, "precision": "fp32", "activation_checkpointing": checkpointing}
        results.append(trained_weights(trainer_of(make_recipe(train=train), tmp_path / str(checkpointing))))
    assert torch.allclose(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_options_that_cannot_be_honoured_are_refused(make_recipe: MakeRecipe) -> None:
    """A paged optimizer without CUDA, fp16 on the CPU, an unknown optimizer and too long documents end in one
    message."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA, which honours them")
    for section, message in (
        ({"train": {"optimizer": "paged_adamw_8bit"}}, "needs a CUDA device"),
        ({"train": {"optimizer": "adamm"}}, "got 'adamm'"),
        ({"train": {"precision": "fp16"}}, "loss scaling"),
        ({"data": {"max_length_tokens": 4096}}, "this base has 256 positions"),
    ):
        with pytest.raises(ModelError, match=message):
            build_inputs(make_recipe(**section))
    assert optimizer_name("adamw") == "adamw_torch"


def test_full_fine_tuning_saves_a_plain_model(make_recipe: MakeRecipe) -> None:
    """Method full trains every weight, and the result loads with plain transformers."""
    from transformers import AutoModelForCausalLM

    recipe = make_recipe(
        adapter={"method": "full"}, train={"micro_batch_size": 8, "precision": "fp32", "learning_rate": 1e-3}
    )
    tree = recipe.model_dump(mode="json")
    tree["adapter"] = {"method": "full"}
    summary = run.start(Recipe.model_validate(tree), name="full", command="test").summary
    folder = Path(recipe.output.folder) / summary["name"]
    assert summary["trainable_parameters"] == summary["parameters"]
    assert summary["evaluation_loss"] < summary["evaluation_loss_before"]
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert sum(p.numel() for p in model.parameters()) == summary["parameters"]
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def test_a_tokenizer_larger_than_the_embedding(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Tokens for which the base has no row are named; those that model.new_tokens trains are not."""
    told: list[str] = []
    base = shutil.copytree(make_recipe().model.base, tmp_path / "larger")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.add_tokens(["<stray>"])
    tokenizer.save_pretrained(base)
    recipe = make_recipe(model={"base": str(base), "new_tokens": ["<wanted>"]})
    with hearing(told.append):
        build.build_model(recipe, build_inputs(recipe))
    warnings = [line for line in told if line.startswith("warning: for")]
    assert len(warnings) == 1
    assert "for 1 of the tokenizer's tokens" in warnings[0]
    assert "(<stray>)" in warnings[0]


def test_what_is_sent_between_processes_and_what_is_rounded(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP sends no buffers, which are the same everywhere; under DeepSpeed, too, weights of messages and
    targets keep their type."""
    trainer = trainer_of(make_recipe(), tmp_path)
    assert trainer.accelerator.ddp_handler.broadcast_buffers is False
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    batch = {"shift_weights": torch.tensor([0.3]), "targets": torch.tensor([1234.5, 257.0])}
    found = trainer._prepare_inputs(batch)
    assert all(torch.equal(found[name], batch[name]) and found[name].dtype == torch.float32 for name in batch)


def test_gpus_that_lie_idle_are_said_once(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with several, and one process."""
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with hearing(said.append):
        run.start(make_recipe(train={"max_steps": 1}), name="idle", command="test")
    (line,) = [line for line in said if "GPUs" in line]
    assert line.endswith("--launch ddp --processes 8 trains on all")


def test_adamw_on_a_gpu_is_torchs_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which holds no temporary of the size of all trained weights; one that is named is that one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert optimizer_name("adamw") == "adamw_torch_fused"
    assert optimizer_name("adamw_torch") == "adamw_torch"

"""Each option of the train section does what it says: each test fails where the option is ignored."""

from pathlib import Path

import pytest
import torch

from finetune.errors import ModelError
from tests.support.processes import trained_weights, trainer_of
from tests.support.recipes import MakeRecipe

PLAIN = {
    "precision": "fp32",
    "micro_batch_size": 8,
    "learning_rate": 1e-2,
    "max_steps": 3,
    "warmup_ratio": 0.0,
}


def trained(
    make_recipe: MakeRecipe, folder: Path, **options: object
) -> tuple[torch.Tensor, list[float], float]:
    """(weights, losses of the steps, evaluation loss before) of a run of three steps."""
    trainer = trainer_of(make_recipe(train=PLAIN | options), folder)
    before = trainer.evaluate()["eval_loss"]
    weights = trained_weights(trainer)
    return weights, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], before


def test_weight_decay_shrinks_weights_that_have_no_gradient(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """AdamW's decay is decoupled: three steps with a zero gradient leave weight x (1 - rate x decay)^3."""
    decay = PLAIN | {"weight_decay": 0.5, "schedule": "constant"}
    trainer = trainer_of(make_recipe(train=decay), tmp_path)
    before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)
    after = trained_weights(trainer)
    expected = torch.cat([p.flatten() for p in before]) * (1 - 1e-2 * 0.5) ** 3
    assert expected.any()
    assert torch.allclose(after, expected, rtol=1e-5)


def test_neftune_adds_noise_in_training_only(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With NEFTune the losses of the steps differ; the evaluation loss before is the same."""
    _, losses, before = trained(make_recipe, tmp_path / "without")
    _, noisy, noisy_before = trained(make_recipe, tmp_path / "with", neftune_alpha=5.0)
    assert noisy_before == before
    assert all(abs(one - other) > 1e-4 for one, other in zip(losses, noisy, strict=True))


def test_label_smoothing_is_for_training_only(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Smoothed targets change the first step's loss; the evaluation loss is the plain cross-entropy."""
    _, losses, before = trained(make_recipe, tmp_path / "without")
    _, smooth, smooth_before = trained(make_recipe, tmp_path / "with", label_smoothing=0.3)
    assert smooth_before == before
    assert abs(smooth[0] - losses[0]) > 1e-4


@pytest.mark.parametrize("most", [None, 1e-3])
def test_clipping_limits_the_update(make_recipe: MakeRecipe, tmp_path: Path, most: float | None) -> None:
    """A step of plain SGD is at most rate x max_gradient_norm long; null clips nothing."""
    options = {
        "optimizer": "sgd",
        "max_gradient_norm": most,
        "max_steps": 1,
        "learning_rate": 1.0,
        "schedule": "constant",
    }
    trainer = trainer_of(make_recipe(train=PLAIN | options), tmp_path)
    before = torch.cat([p.detach().clone().flatten() for p in trainer.model.parameters() if p.requires_grad])
    length = float((trained_weights(trainer) - before).norm())
    norm = trainer.state.log_history[0]["grad_norm"]
    assert norm > 1e-2
    assert length == pytest.approx(norm if most is None else most, rel=1e-2)


def test_bf16_computes_in_bf16(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With bf16 the base is bf16 and the adapter fp32; the loss agrees with fp32's to bf16's two digits, not
    more."""
    trainer = trainer_of(make_recipe(train=PLAIN | {"precision": "bf16"}), tmp_path, dtype=None)
    kinds = {p.requires_grad: p.dtype for p in trainer.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    trainer.train()
    _, losses, _ = trained(make_recipe, tmp_path / "fp32")
    first = trainer.state.log_history[0]["loss"]
    assert first != losses[0]
    assert first == pytest.approx(losses[0], rel=2e-2)


def test_activation_checkpointing_keeps_fewer_tensors(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With activation checkpointing, autograd keeps fewer tensors between forward and backward; every other
    layer's, half."""
    saved = []
    for every in (None, 2, 1):
        options = {
            "activation_checkpointing": every is not None,
            "activation_checkpointing_every_layers": every or 1,
        }
        trainer = trainer_of(make_recipe(train=PLAIN | options | {"max_steps": 1}), tmp_path / str(every))
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        compute = trainer.compute_loss

        def counted(*inputs: object, compute=compute, keep=keep, **options: object) -> torch.Tensor:  # type: ignore[no-untyped-def]
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                return compute(*inputs, **options)

        trainer.compute_loss = counted  # type: ignore[method-assign]
        trainer.train()
        saved.append(sum(sizes))
    whole, half, none = saved
    assert none < whole / 2
    assert half == pytest.approx((whole + none) / 2, rel=0.05)


def test_embeddings_need_no_gradient(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With and without activation checkpointing, no gradient is taken through to the embeddings."""
    for on in (False, True):
        model = trainer_of(
            make_recipe(train=PLAIN | {"activation_checkpointing": on}), tmp_path / str(on)
        ).model.train()
        found: list[bool] = []
        model.get_input_embeddings().register_forward_hook(
            lambda *call, found=found: found.append(call[2].requires_grad)
        )
        ids = torch.arange(3, 13).view(1, 10)
        model(input_ids=ids, shift_labels=ids).loss.backward()
        assert found == [False]
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_checkpointing_fewer_layers_than_there_are(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A number of layers that the base doesn't have is refused."""
    options = {"activation_checkpointing": True, "activation_checkpointing_every_layers": 9}
    with pytest.raises(ModelError, match="9, and this base has 2 layers"):
        trainer_of(make_recipe(train=PLAIN | options), tmp_path)

"""PoLoRA: against its formulas by singular values, what bounds its steps, and that it goes on where it was."""

import json
import shutil
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from finetune.models.sizes import state_bytes
from finetune.training import run
from finetune.training.optimization.polora import PoLoRA, inverse_root, lora_pairs, polar
from tests.support.processes import EXACT, adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe, found

RANK, INPUTS, OUTPUTS, RATE = 3, 7, 5, 0.2
TRAIN = EXACT | {"optimizer": "polora", "learning_rate": 0.05, "max_steps": 6}


def adapted(layers: int = 2) -> Any:
    """Linear layers with LoRA in float64, B at zero."""
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(INPUTS, OUTPUTS, bias=False) for _ in range(layers))).double()
    names = [str(number) for number in range(layers)]
    return get_peft_model(base, LoraConfig(r=RANK, target_modules=names), autocast_adapter_dtype=False)


def whole_gradient(step: int, layer: int) -> torch.Tensor:
    """Of the loss to the product B A (O x I), drawn."""
    draw = torch.Generator().manual_seed(100 * step + layer)
    return torch.randn(OUTPUTS, INPUTS, dtype=torch.float64, generator=draw)


def of_loss(pair: Any, gradient: torch.Tensor) -> None:
    a, b = pair
    a.grad, b.grad = b.detach().T @ gradient, gradient @ a.detach().T


def by_singular_values(a: Any, b: Any, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The update as it is written, a matrix at a time, in float64."""

    def root(gram: torch.Tensor) -> torch.Tensor:
        top = float(torch.linalg.matrix_norm(gram, 2))
        damped = gram + max(1e-4 * top, 1e-12) * torch.eye(len(gram), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(damped)
        return vectors @ torch.diag(values**-0.5) @ vectors.T

    def sign(matrix: torch.Tensor) -> torch.Tensor:
        if not matrix.any():
            return matrix
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        return u @ v

    momentum_a, momentum_b = torch.zeros_like(a), torch.zeros_like(b)
    q = torch.full((INPUTS,), 1e-12, dtype=torch.float64)
    p = torch.full((OUTPUTS,), 1e-12, dtype=torch.float64)
    for step in range(steps):
        gradient = whole_gradient(step, 0)
        for_a, for_b = b.T @ gradient, gradient @ a.T
        momentum_a, momentum_b = 0.9 * momentum_a + 0.1 * for_a, 0.9 * momentum_b + 0.1 * for_b
        ahead_a, ahead_b = 0.9 * momentum_a + 0.1 * for_a, 0.9 * momentum_b + 0.1 * for_b
        q_now, p_now = q / q.max() + 1e-4, p / p.max() + 1e-4
        of_b, of_a = root(b.T @ torch.diag(p_now) @ b), root(a @ torch.diag(q_now) @ a.T)
        by_q, by_p = torch.diag(q_now**-0.5), torch.diag(p_now**-0.5)
        norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in (a, b)]
        step_a = of_b @ sign(of_b @ ahead_a @ by_q) @ by_q
        step_b = by_p @ sign(by_p @ ahead_b @ of_a) @ of_a
        q = 0.99 * q + 0.01 * torch.diag(for_a.T @ of_b @ of_b @ for_a) / RANK
        p = 0.99 * p + 0.01 * torch.diag(for_b @ of_a @ of_a @ for_b.T) / RANK
        length = RATE / sum(norms)
        a = a - length * step_a / max(float(torch.linalg.matrix_norm(step_a, 2)), 1e-12)
        b = b - length * step_b / max(float(torch.linalg.matrix_norm(step_b, 2)), 1e-12)
    return a, b


def test_steps_are_those_of_the_formulas() -> None:
    """Five of them from B = 0, of two layers that are computed together."""
    model = adapted()
    pairs = lora_pairs(model)
    a, b = (weight.detach().clone() for weight in pairs[0])
    optimizer = PoLoRA([weight for pair in pairs for weight in pair], pairs, lr=RATE)
    for step in range(5):
        for layer, pair in enumerate(pairs):
            of_loss(pair, whole_gradient(step, layer))
        optimizer.step()
    for ours, formula in zip(pairs[0], by_singular_values(a, b, 5), strict=True):
        torch.testing.assert_close(ours.detach(), formula, rtol=1e-6, atol=1e-8)


def test_the_product_moves_by_the_learning_rate_at_most() -> None:
    """In the spectral norm, but for the product of both steps; however large the gradients are."""
    pairs = lora_pairs(adapted(1))
    (a, b) = pairs[0]
    optimizer = PoLoRA([a, b], pairs, lr=RATE)
    for step in range(20):
        before = (b @ a).detach()
        norms = sum(float(torch.linalg.matrix_norm(weight.detach(), 2)) for weight in (a, b))
        of_loss((a, b), 10.0 ** (step % 7 - 3) * whole_gradient(step, 0))
        optimizer.step()
        moved = float(torch.linalg.matrix_norm((b @ a).detach() - before, 2))
        assert moved <= RATE + (RATE / norms) ** 2 + 1e-9
        assert moved > RATE / 100


def test_matrix_functions_of_what_has_no_full_rank() -> None:
    """A polar factor has singular values 1 and 0, and an inverse root ends at the damping."""
    torch.manual_seed(0)
    deficient = torch.randn(2, 4, 2, dtype=torch.float64) @ torch.randn(2, 2, 6, dtype=torch.float64)
    values = torch.linalg.svdvals(polar(deficient))
    torch.testing.assert_close(values, torch.tensor([[1.0, 1, 0, 0]] * 2, dtype=torch.float64))
    assert not polar(torch.zeros(1, 3, 5)).any()
    assert inverse_root(torch.zeros(1, 3, 3, dtype=torch.float64)).diagonal(dim1=1, dim2=2).eq(1e6).all()


def test_it_keeps_what_is_said() -> None:
    """One running mean, and a number for each input and output."""
    pairs = lora_pairs(adapted(1).float())
    optimizer = PoLoRA(list(pairs[0]), pairs, lr=RATE)
    for weight in pairs[0]:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    kept = sum(4 * value.numel() for state in optimizer.state.values() for value in state.values())
    assert kept == state_bytes("polora", ((RANK, INPUTS), (OUTPUTS, RANK)))


def test_other_weights_and_decay_are_refused() -> None:
    """It has no update for them."""
    pairs = lora_pairs(adapted(1))
    other = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="aren't LoRA's A and B"):
        PoLoRA([*pairs[0], other], pairs, lr=RATE)
    with pytest.raises(ValueError, match="decay"):
        PoLoRA(list(pairs[0]), pairs, lr=RATE, weight_decay=0.1)


def test_a_resumed_run_is_the_same_bit_for_bit(make_recipe: MakeRecipe) -> None:
    """Its state is in the checkpoint; the loss falls."""
    folder = start(make_recipe(train=TRAIN))
    whole = adapter_of(folder)
    lines = map(json.loads, folder.metrics_path.read_text().splitlines())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0]
    folder.write_summary({"status": "running"})
    shutil.rmtree(folder.checkpoints / "checkpoint-6")
    run.resume(folder.path, recipe=None)
    assert_equal(whole, adapter_of(folder))


@pytest.mark.parametrize(
    ("with_it", "path"),
    [
        ("adapter: {method: full}", "adapter.method"),
        ("adapter: {use_dora: true}", "adapter.use_dora"),
        ("adapter: {modules_to_save: [lm_head]}", "adapter.modules_to_save"),
        ("adapter: {target_modules: [q_proj, embed_tokens]}", "adapter.target_modules"),
    ],
)
def test_what_trains_beside_pairs_is_refused(with_it: str, path: str) -> None:
    """Before anything loads."""
    problems = found(f"{{train: {{optimizer: polora}}, {with_it}}}")
    assert problems[0] == (
        f"{path}  optimizer polora trains both matrices of LoRA's layers and nothing else; remove this, or take "
        "adamw"
    )


def test_what_it_decides_itself_is_refused() -> None:
    """Decay, rates of B, betas."""
    problems = found(
        "{train: {optimizer: polora, weight_decay: 0.1, loraplus_lr_ratio: 4, riemannian_damping: 0.1, "
        "adam_betas: [0.9, 0.99]}, adapter: {init: pissa, dropout: 0.0}}"
    )
    assert list(dict.fromkeys(problem.split("  ")[0] for problem in problems)) == [
        "adapter.init", "train.weight_decay", "train.loraplus_lr_ratio", "train.riemannian_damping", "train.adam_betas",
    ]  # fmt: skip

"""Fused LoRA layers give peft's outputs and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from finetune.models.kernels.install import install_fast_path
from finetune.models.kernels.lora import FusedLora, Layer, factors_of
from finetune.models.kernels.mlp import Mlp
from tests.support.kept import kept_bytes
from tests.support.lora import adapted, difference, outcome

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {"rank_pattern": {"k_proj": 2, "gate_proj": 7}, "alpha_pattern": {"v_proj": 1, "up_proj": 40}},
    ],
)
def test_fused_layers_equal_pefts(tiny_base: Path, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Logits and gradients are peft's: 1e-12 in fp64, 1e-5 in fp32 (relative L2), with rsLoRA's scaling
    too."""
    plain, fused = (adapted(tiny_base, dtype, **options) for _ in range(2))
    assert install_fast_path(fused) == sum("lora_A" in name for name, _ in plain.named_parameters())
    for got, expected in zip(outcome(fused), outcome(plain), strict=True):
        assert difference(got, expected) < TOLERANCES[dtype]


def test_bf16_is_nearer_to_fp32_than_pefts(tiny_base: Path) -> None:
    """Logits and gradients of a bf16 base with an fp32 adapter under autocast, each against the same in fp32;
    gradients stay fp32."""

    def mixed() -> PeftModel:
        model = adapted(tiny_base, torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        return model

    fused = mixed()
    install_fast_path(fused)
    exact = outcome(mixed().float())
    for ours, pefts, wide in zip(
        outcome(fused, autocast=True), outcome(mixed(), autocast=True), exact, strict=True
    ):
        assert difference(ours, wide) < difference(pefts, wide) < 2e-2
    assert all(p.grad.dtype == torch.float32 for p in fused.parameters() if p.grad is not None)


def test_a_small_update_is_not_rounded_away_in_bf16() -> None:
    """Of one that is a thousandth of the base's output, all comes through on average; added to the rounded
    product it would be half."""
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(shape).bfloat16() for shape in ((64, 96), (128, 96), (4, 96), (128, 4)))
    base = torch.nn.Linear(96, 128, bias=False).to(torch.bfloat16).requires_grad_(False)
    base.weight.data = weight
    layers = (Layer(base, 5e-4),)
    output = FusedLora.apply(x, layers, 0.0, factors_of(layers, (a, b), x.dtype), a, b)[0].double()
    update = 5e-4 * x.double() @ a.double().T @ b.double().T
    found = output - x.double() @ weight.double().T
    assert float((found * update).sum() / update.square().sum()) == pytest.approx(1, abs=0.1)


def test_layers_of_one_input_and_the_mlp_have_exact_gradients() -> None:
    """In fp64, gradients of q, k, v in one step, and of the gated MLP, are those of numeric differences."""
    torch.manual_seed(0)

    def part(inputs: int, outputs: int) -> tuple[Layer, torch.Tensor, torch.Tensor]:
        base = torch.nn.Linear(inputs, outputs, dtype=torch.float64).requires_grad_(False)
        a, b = (
            torch.randn(shape, dtype=torch.float64, requires_grad=True)
            for shape in ((2, inputs), (outputs, 2))
        )
        return Layer(base, 0.5), a, b

    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    layers, *pairs = zip(*(part(6, width) for width in (4, 2, 2)), strict=True)
    matrices = [matrix for pair in zip(*pairs, strict=True) for matrix in pair]
    assert torch.autograd.gradcheck(
        lambda x, *m: FusedLora.apply(x, layers, 0.0, factors_of(layers, m, x.dtype), *m), (x, *matrices)
    )

    layers, *pairs = zip(part(6, 5), part(6, 5), part(5, 6), strict=True)
    matrices = [matrix for pair in zip(*pairs, strict=True) for matrix in pair]

    def output(x: torch.Tensor, *m: torch.Tensor) -> torch.Tensor:
        both = factors_of(layers[:2], m[:4], x.dtype), factors_of(layers[2:], m[4:], x.dtype)
        return Mlp(layers, both, m)(x)

    assert torch.autograd.gradcheck(output, (x, *matrices))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_and_checkpointing_fall_back_without_a_difference(
    tiny_base: Path, checkpointing: bool
) -> None:
    """With dropout (each layer its own mask) and with activations recomputed, the fast path learns as in one
    pass."""
    outcomes = []
    for recompute in (False, checkpointing):
        model = adapted(tiny_base, torch.float64, lora_dropout=0.3)
        install_fast_path(model)
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        outcomes.append(outcome(model))
    assert difference(outcomes[1][1], outcomes[0][1]) < 1e-12
    assert not torch.equal(outcomes[0][0], outcome(model)[0]), "no dropout fell"


def test_the_fast_path_keeps_less_for_the_backward_pass(tiny_base: Path) -> None:
    """What autograd keeps of a forward pass, weights aside, is at most 0.7 of what peft's and transformers'
    own keep."""
    kept = []
    for fuse in (True, False):
        model = adapted(tiny_base, torch.bfloat16)
        if fuse:
            install_fast_path(model)
        with kept_bytes(model.parameters()) as found:
            logits = model(input_ids=torch.arange(3, 303).view(1, 300)).logits  # noqa: F841 - its graph holds what is kept
        kept.append(sum(found.values()))
    assert kept[0] < 0.7 * kept[1]


def test_dropout_falls_on_the_update_alone(tiny_base: Path) -> None:
    """In fp64 with dropout, the gradients are those of the function that the forward pass computed (numeric
    check)."""
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5, dtype=torch.float64).requires_grad_(False)
    x, a, b = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 6), (4, 6), (5, 4))
    )

    def function(*inputs: torch.Tensor, dropout: float = 0.3) -> torch.Tensor:
        torch.manual_seed(1)
        x, a, b = inputs
        layers = (Layer(base, 0.5),)
        return FusedLora.apply(x, layers, dropout, factors_of(layers, (a, b), x.dtype), a, b)[0]

    assert torch.autograd.gradcheck(function, (x, a, b))
    undropped = function(x, a, b, dropout=0.0)
    assert torch.allclose(undropped, base(x) + 0.5 * x @ a.T @ b.T)
    update = function(x, a, b) - base(x)
    assert not torch.allclose(update, undropped - base(x))


def test_nf4_bases(tiny_base: Path) -> None:
    """On an NF4 base, gradients are those of peft on the same base to 1e-2 (relative L2)."""
    pytest.importorskip("bitsandbytes")
    from finetune.models.bases.locate import Base
    from finetune.models.load import load_model

    results = []
    for fuse in (True, False):
        base = Base(tiny_base, {"kind": "folder", "name": "tiny"})
        model = load_model(base, dtype=torch.float32, quantization="nf4-double")
        torch.manual_seed(0)
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        adapter = get_peft_model(model, config).train()
        if fuse:
            assert install_fast_path(adapter) == 14
        results.append(outcome(adapter)[1])
    assert difference(*results) < 1e-2


def test_what_can_not_be_fused_keeps_pefts_forward(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Matrices with a bias are left as they are, with one line that says how many and why; the model gives
    what it gave."""
    caplog.set_level("INFO", logger="finetune")
    model = adapted(tiny_base, torch.float32, lora_bias=True)
    expected = outcome(model)
    model.zero_grad()
    assert install_fast_path(model) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "14 LoRA layers are not fused: its matrices have a bias"
    ]
    assert all(difference(got, want) < 1e-5 for got, want in zip(outcome(model), expected, strict=True))


def test_switched_off_adapters_are_off(tiny_base: Path) -> None:
    """With the adapter disabled, the fused model is the base."""
    model = adapted(tiny_base, torch.float32)
    install_fast_path(model)
    ids = torch.arange(3, 18).view(1, 15)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)

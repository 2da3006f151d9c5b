"""Fused DoRA layers give peft's outputs and gradients: those of A, B and the magnitudes m."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from finetune.errors import ModelError
from finetune.merging.deltas import LowRank
from finetune.models.adapters.adapter import attach, save_adapter
from finetune.models.adapters.joint import JointDecoder
from finetune.models.bases.locate import Base
from finetune.models.kernels.dora import Magnify, magnitude_of
from finetune.models.kernels.fp8 import round_base
from finetune.models.kernels.install import install_fast_path
from finetune.models.load import load_model
from finetune.models.safetensors import StoredWeights
from finetune.recipe.schema.adapter import AdapterSection
from tests.support.kept import kept_bytes
from tests.support.lora import difference, outcome
from tests.support.models import save_tiny_llama

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def dora(base: Any, **options: Any) -> PeftModel:
    """The base with DoRA whose B isn't zero, and whose magnitudes aren't the rows' lengths, in training."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", use_dora=True, **settings))
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            drawn = torch.randn(weight.shape, generator=draw, dtype=torch.float64) * 0.1
            weight.data = (weight * (1 + drawn) if "magnitude" in name else drawn).to(weight.dtype).detach()
    return model.train()


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def both(folder: Path, dtype: torch.dtype, **options: Any) -> Iterator[PeftModel]:
    """peft's own, and the same with the fast path."""
    plain, fused = (dora(loaded(folder, dtype), **options) for _ in range(2))
    assert install_fast_path(fused) == sum("lora_A" in name for name, _ in plain.named_parameters())
    return iter((plain, fused))


def drawn_outcome(model: PeftModel, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and gradients, with dropout's draws from one seed."""
    torch.manual_seed(5)
    return outcome(model, **options)


@pytest.fixture(scope="module")
def biased_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose linear layers have biases that aren't zero."""
    folder = tmp_path_factory.mktemp("biased")
    save_tiny_llama(folder, attention_bias=True, mlp_bias=True)
    model = loaded(folder, torch.float32)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            weight.data.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {"rank_pattern": {"k_proj": 2, "gate_proj": 7}, "alpha_pattern": {"v_proj": 1, "up_proj": 40}},
        {"lora_dropout": 0.3},
    ],
    ids=["plain", "rslora", "some", "patterns", "dropout"],
)
def test_fused_layers_equal_pefts(tiny_base: Path, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Logits and gradients are peft's: 1e-12 in fp64, 1e-5 in fp32 (relative L2); dropout draws what peft
    draws."""
    expected, found = map(drawn_outcome, both(tiny_base, dtype, **options))
    for got, want in zip(found, expected, strict=True):
        assert difference(got, want) < TOLERANCES[dtype]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_biases_are_not_multiplied(biased_base: Path, dropout: float) -> None:
    """As in peft, of a base whose layers have some, to 1e-12 in fp64."""
    expected, found = map(drawn_outcome, both(biased_base, torch.float64, lora_dropout=dropout))
    for got, want in zip(found, expected, strict=True):
        assert difference(got, want) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_that_are_recomputed_change_nothing(tiny_base: Path, dropout: float) -> None:
    """Gradients are those of one pass, exactly."""
    found = []
    for recompute in (False, True):
        _, model = both(tiny_base, torch.float64, lora_dropout=dropout)
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        found.append(drawn_outcome(model)[1])
    assert torch.equal(*found)


def test_lengths_follow_the_weights(tiny_base: Path) -> None:
    """Three steps of gradient descent are peft's, to 1e-12 in fp64."""
    found = []
    for model in both(tiny_base, torch.float64):
        for _ in range(3):
            outcome(model)
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.data -= 0.1 * weight.grad
                    weight.grad = None
        found.append(outcome(model)[0])
    assert difference(*found) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bf16_is_no_farther_from_fp32_than_pefts(tiny_base: Path, dropout: float) -> None:
    """Logits and gradients of a bf16 base with an fp32 adapter under autocast, each against the same in
    fp32."""
    apart = []
    for fuse in (False, True):
        narrow = dora(loaded(tiny_base, torch.bfloat16), lora_dropout=dropout)
        wide = dora(loaded(tiny_base, torch.bfloat16).float(), lora_dropout=dropout)
        for one, other in zip(narrow.parameters(), wide.parameters(), strict=True):
            if other.requires_grad:
                one.data = other.data
        if fuse:
            install_fast_path(narrow)
        pairs = zip(drawn_outcome(narrow, autocast=True), drawn_outcome(wide), strict=True)
        apart.append([difference(got, want) for got, want in pairs])
        assert all(p.grad.dtype == torch.float32 for p in narrow.parameters() if p.grad is not None)
    for ours, pefts in zip(apart[1], apart[0], strict=True):
        assert ours < 1.1 * pefts


def test_a_magnitude_is_finer_than_bf16() -> None:
    """m 1 % longer than its row makes outputs in bf16 1 % larger; g in bf16 would be 1.0078."""
    draw = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(64, 8, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    a, b = torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(8, 2, dtype=torch.bfloat16)
    z = torch.rand(4096, 8, generator=draw).bfloat16()
    m = base.weight.float().norm(dim=1) * 1.01
    output = Magnify.apply(z, m, magnitude_of(base, m, a, b))
    assert float(output.float().mean() / z.float().mean() - 1) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "embed_tokens"]], ids=["linear", "embedding"])
def test_a_fresh_adapter_changes_nothing(tiny_base: Path, targets: Any) -> None:
    """Logits of a bf16 base are those of the base, exactly; lengths that are rounded to bf16 change them."""
    section = AdapterSection(rank=4, use_dora=True, target_modules=targets)
    model = attach(loaded(tiny_base, torch.bfloat16), section)
    install_fast_path(model)
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(found, model(input_ids=ids).logits)


def test_a_row_of_zeros_stays_one(tiny_base: Path, tmp_path: Path) -> None:
    """In training, whose logits and gradients are finite and the base's, and in a merge."""
    base = loaded(tiny_base, torch.float32)
    weight = base.model.layers[0].mlp.down_proj.weight
    weight.data[:] = 0
    with torch.no_grad():
        expected = base(input_ids=torch.arange(3, 33).view(2, 15)).logits
    model = attach(base, AdapterSection(rank=4, use_dora=True))
    install_fast_path(model)
    logits, gradients = outcome(model)
    assert difference(logits, expected) < 1e-5
    assert gradients.isfinite().all()
    save_adapter(model, tmp_path, "base")
    stored = StoredWeights([tmp_path / "adapter_model.safetensors"])
    prefix = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    a, b, m = (f"{prefix}{name}" for name in ("A.weight", "B.weight", "magnitude_vector"))
    merged = LowRank(stored, a, b, 1.0, m).ready()(weight.detach().clone(), 0)
    assert torch.equal(merged, torch.zeros_like(weight))


def test_a_magnitude_that_fsdp2_rounded_changes_nothing() -> None:
    """m in bf16 that is its row's length multiplies by one, exactly."""
    torch.manual_seed(0)
    base = torch.nn.Linear(64, 512, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    a, b = torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(512, 2, dtype=torch.bfloat16)
    m = base.weight.float().norm(dim=1).bfloat16()
    assert magnitude_of(base, m, a, b).excess.abs().max() == 0


@pytest.mark.parametrize("in_place", [True, False])
def test_lengths_follow_a_base_that_changes(in_place: bool) -> None:
    """A weight that is twice what it was has rows of twice the length."""
    base = torch.nn.Linear(6, 4, bias=False).requires_grad_(False)
    a, b, m = torch.zeros(2, 6), torch.zeros(4, 2), torch.ones(4)
    before = magnitude_of(base, m, a, b).lengths
    if in_place:
        base.weight.mul_(2)
    else:  # as peft merges
        base.weight.data = base.weight.data * 2
    assert torch.allclose(magnitude_of(base, m, a, b).lengths, 2 * before)


@pytest.mark.parametrize("quantization", ["nf4-double", "int8"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_quantised_bases(tiny_base: Path, quantization: str, dropout: float) -> None:
    """Logits and gradients are peft's on the same base, to 1e-4 in fp32."""
    pytest.importorskip("bitsandbytes")
    results = []
    for fuse in (True, False):
        base = load_model(Base(tiny_base, {}), dtype=torch.float32, quantization=quantization)
        model = dora(base, lora_dropout=dropout)
        if fuse:
            assert install_fast_path(model) == 14
        results.append(drawn_outcome(model))
    for got, want in zip(*results, strict=True):
        assert difference(got, want) < 1e-4


def test_a_base_in_fp8(tiny_base: Path) -> None:
    """Products are of the rounded weights, lengths of the exact ones: as peft's layers compute it, to
    1e-12."""
    plain, fused = (dora(loaded(tiny_base, torch.float64)) for _ in range(2))
    assert round_base(plain) == round_base(fused) == 14
    install_fast_path(fused)
    for got, want in zip(outcome(fused), outcome(plain), strict=True):
        assert difference(got, want) < 1e-12


class Shapes(TorchDispatchMode):
    """The shapes of what is computed, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and keep the shape of what comes out."""
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.is_view:
            self.found.add(tuple(made.shape))
        return made


def test_no_product_b_a_is_formed(tiny_base: Path) -> None:
    """No tensor of a weight's shape is made, forward or backward, where peft makes some."""
    formed = []
    for model in both(tiny_base, torch.float32, target_modules=["down_proj"]):
        shape = tuple(model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight.shape)
        outcome(model)
        with Shapes() as shapes:
            outcome(model)
        formed.append(shape in shapes.found)
    assert formed == [True, False]


def test_less_is_kept_for_the_backward_pass(tiny_base: Path) -> None:
    """Not half of what peft's own layers keep, weights aside."""
    kept = []
    for model in both(tiny_base, torch.float32):
        with kept_bytes(model.parameters()) as found:
            logits = model(input_ids=torch.arange(3, 303).view(1, 300)).logits  # noqa: F841 - its graph holds what is kept
        kept.append(sum(found.values()))
    assert kept[1] < 0.5 * kept[0]


def test_a_batch_of_several_adapters_takes_none(tiny_base: Path) -> None:
    """It is refused, and not computed as plain LoRA."""
    decoder = JointDecoder(loaded(tiny_base, torch.float32))
    with pytest.raises(ModelError, match=r"it is DoRA\. Train it alone"):
        decoder.join("one", dora(loaded(tiny_base, torch.float32)))

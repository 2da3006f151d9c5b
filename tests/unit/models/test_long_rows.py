"""What rows need that are long: MLPs in tiles, layer inputs on the host, recomputation that makes nothing
twice that nothing needs."""

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from finetune.errors import ModelError
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.models.kernels.install import install_fast_path
from finetune.models.offloading import Input
from finetune.models.recomputation import recompute_activations
from finetune.models.sizes import INPUTS_ON_DEVICE
from tests.support.models import save_tiny_llama

LAYERS, TOKENS, WIDTH, INNER = 5, 40, 64, 96
ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu.default"


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of more layers than are on the device at a time."""
    folder = tmp_path_factory.mktemp("deep")
    save_tiny_llama(folder, num_hidden_layers=LAYERS, hidden_size=WIDTH, intermediate_size=INNER)
    return folder


def adapted(base: Path, dtype: torch.dtype = torch.float32, tile: int | None = None, **lora: Any) -> Any:
    """The base with an adapter whose B isn't zero, and the fast path."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=PER_DOCUMENT)
    options: dict[str, Any] = {"target_modules": "all-linear"} | lora
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape, dtype=torch.float64) * 0.1).to(dtype)
    install_fast_path(model, mlp_tile_tokens=tile)
    return model.train()


def gradients(model: Any, rows: int = 1) -> torch.Tensor:
    """The adapter's, of two micro-batches."""
    for first in (3, 11):
        ids = torch.arange(first, first + rows * TOKENS).view(rows, TOKENS)
        model(input_ids=ids).logits.pow(2).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


class Operators(TorchDispatchMode):
    """Counts what is computed, and keeps the shapes of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.shapes = Counter[str](), Counter[tuple[int, ...]]()
        self.down_products = 0

    def __torch_dispatch__(self, operator: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        result = operator(*given, **(options or {}))
        self.names[str(operator)] += 1
        if isinstance(result, torch.Tensor):
            self.shapes[tuple(result.shape)] += 1
            shapes = [tuple(one.shape) for one in given if isinstance(one, torch.Tensor)]
            self.down_products += (
                str(operator) == "aten.addmm_.default"
                and shapes[1:] == [(TOKENS, INNER), (INNER, WIDTH)]
                and not given[
                    2
                ].is_contiguous()  # down_proj's weight as it multiplies; gate's, backward, lies so
            )
        return result


def counted(model: Any) -> Operators:
    with Operators() as operators:
        gradients(model)
    return operators


@pytest.mark.parametrize(
    ("tile", "dtype", "tolerance", "lora"),
    [
        (7, torch.float64, 1e-12, {}),
        (16, torch.float32, 1e-6, {}),
        (1000, torch.float64, 1e-12, {}),
        (7, torch.float64, 1e-12, {"use_dora": True}),
    ],
)
def test_an_mlp_in_tiles_gives_the_same(
    tile: int, dtype: torch.dtype, tolerance: float, lora: dict[str, Any], deep_base: Path
) -> None:
    """Gradients are the whole MLP's: 1e-12 in fp64, 1e-6 in fp32 (relative L2), whatever the tile, with and
    without recomputation."""
    expected = gradients(adapted(deep_base, dtype, **lora), rows=2)
    for recomputes in (False, True):
        model = adapted(deep_base, dtype, tile, **lora)
        if recomputes:
            recompute_activations(model)
        assert (gradients(model, rows=2) - expected).norm() < tolerance * expected.norm()


def test_no_inner_activation_of_a_whole_row_exists(deep_base: Path) -> None:
    """In tiles of 8 tokens nothing as wide as the MLP has more rows, forward and backward; without tiles
    something has."""
    whole, tiled = counted(adapted(deep_base)), counted(adapted(deep_base, tile=8))
    assert max(shape[-2] for shape in tiled.shapes if shape[-1:] == (INNER,) and shape[0] != WIDTH) == 8
    assert whole.shapes[TOKENS, INNER] > 0


def test_adapters_switched_off_compute_in_tiles_too(deep_base: Path) -> None:
    """A reference's forward pass is the base's, without inner activations of a whole row."""
    model, ids = adapted(deep_base, tile=8), torch.arange(3, 3 + TOKENS).view(1, TOKENS)
    plain = AutoModelForCausalLM.from_pretrained(deep_base, dtype=torch.float32)
    with torch.no_grad(), model.disable_adapter(), Operators() as operators:
        logits = model(input_ids=ids).logits
    assert torch.allclose(logits, plain(input_ids=ids).logits, atol=1e-5)
    assert not any(shape[-2:] == (TOKENS, INNER) for shape in operators.shapes)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["gate_proj", "up_proj"]},
        {"layers_to_transform": [4], "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    ],
    ids=str,
)
def test_tiles_are_refused_where_an_mlp_is_not_fused(lora: dict[str, Any], deep_base: Path) -> None:
    """By how many MLPs, and what they need."""
    with pytest.raises(ModelError, match=r"train\.mlp_tile_tokens: [45] of this model's 5 MLPs can't"):
        adapted(deep_base, tile=8, **lora)


@pytest.mark.parametrize(("every", "keep_attention"), [(1, False), (2, True)])
def test_inputs_on_the_host_change_no_bit(every: int, keep_attention: bool, deep_base: Path) -> None:
    """Gradients of two micro-batches with layer inputs in the host's memory equal those without, exactly."""
    results = []
    for offload in (False, True):
        model = adapted(deep_base)
        recompute_activations(model, every, offload=offload, keep_attention=keep_attention)
        results.append(gradients(model))
    assert torch.equal(*results)


def test_few_inputs_are_on_the_device_at_a_time(deep_base: Path) -> None:
    """After the forward pass as many as are in flight, of one input a layer; none after the backward pass,
    whose buffers the next step uses."""

    def inputs() -> list[Input]:
        gc.collect()
        return [found for found in gc.get_objects() if isinstance(found, Input)]

    model = adapted(deep_base)
    recompute_activations(model, offload=True)
    gradients(model)
    loss = model(input_ids=torch.arange(3, 3 + TOKENS).view(1, TOKENS)).logits.sum()
    taken = inputs()
    assert len(taken) == LAYERS
    assert sum(one.on_device is not None for one in taken) == INPUTS_ON_DEVICE
    memory = taken[0].memory
    assert not memory.free
    del taken
    loss.backward()
    del loss
    assert not inputs()
    assert [buffer.nbytes for buffer in memory.free] == LAYERS * [TOKENS * WIDTH * 4]


def test_recomputation_ends_before_what_nothing_needs(deep_base: Path) -> None:
    """A recomputed layer makes down_proj's product once, in the forward pass; attention twice, or once where
    its output is kept."""
    counts = []
    for options in ({}, {"keep_attention": True}):
        model = adapted(deep_base)
        recompute_activations(model, **options)
        counts.append(counted(model))
    kept_nothing, kept_attention = counts
    micro_batches = 2
    assert kept_nothing.down_products == LAYERS * micro_batches
    assert kept_nothing.names[ATTENTION] == 2 * LAYERS * micro_batches
    assert kept_attention.names[ATTENTION] == LAYERS * micro_batches

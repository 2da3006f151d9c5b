"""Adapters that start at a part of the base, or at what quantisation took from it; and on some layers only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune.errors import ModelError
from finetune.models.adapters.adapter import attach, count_parameters
from finetune.models.adapters.start import BesideItsStart
from finetune.models.bases.folder import read_config
from finetune.models.bases.locate import Base
from finetune.models.bases.shapes import count_trainable, read_shape
from finetune.models.kernels.base_products import base_weight
from finetune.models.kernels.install import install_fast_path
from finetune.models.load import load_model
from finetune.models.safetensors import StoredWeights
from finetune.recipe.schema.adapter import AdapterSection

IDS = torch.arange(24).reshape(2, 12)


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def trained(model: Any, steps: int = 5) -> torch.Tensor:
    """Logits after some steps of AdamW with weight decay on one batch."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_it_trains_as_peft_does_on_a_base_without_that_part(
    tiny_base: Path, init: Any, use_rslora: bool, fused: bool
) -> None:
    """Logits before and after steps with weight decay are those of peft, which takes the part out of the
    base; ours leaves the base as it is."""
    section = AdapterSection(rank=4, alpha=6.0, init=init, use_rslora=use_rslora)
    ours, base = attach(load(tiny_base), section), load(tiny_base)
    if fused:
        assert install_fast_path(ours) == 14
    plain = base(input_ids=IDS).logits.detach()
    config = LoraConfig(
        r=4, lora_alpha=6, init_lora_weights=init, use_rslora=use_rslora, target_modules="all-linear"
    )
    its = get_peft_model(base, config)
    torch.testing.assert_close(ours(input_ids=IDS).logits, plain, rtol=0, atol=2e-5)
    assert count_parameters(ours)[0] == count_parameters(its)[0]
    mine, others = trained(ours), trained(its)
    assert float((others - plain).norm() / plain.norm()) > 0.05
    assert float((mine - others).norm() / others.norm()) < 1e-3
    untouched = load(tiny_base).state_dict()
    for name, weight in ours.get_base_model().state_dict().items():
        if "base_layer" in name:
            assert torch.equal(weight, untouched[name.replace(".base_layer", "")]), name


def test_the_fast_decomposition_is_close_to_the_full_one(tiny_base: Path) -> None:
    """pissa_niter_16 starts at as much of a weight as pissa, to a hundredth of its norm; a seed gives the
    same start again."""
    norms = {}
    for init in ("pissa", "pissa_niter_16"):
        torch.manual_seed(0)
        layer: Any = attach(load(tiny_base), AdapterSection(rank=4, init=init)).get_submodule(
            "base_model.model.model.layers.0.mlp.up_proj"
        )
        torch.manual_seed(0)
        again: Any = attach(load(tiny_base), AdapterSection(rank=4, init=init)).get_submodule(
            "base_model.model.model.layers.0.mlp.up_proj"
        )
        a, b = layer.lora_A["default"].trained, layer.lora_B["default"].trained
        assert torch.equal(a, again.lora_A["default"].trained)
        norms[init] = float((layer.scaling["default"] * b @ a).detach().norm())
    weight = load(tiny_base).get_submodule("model.layers.0.mlp.up_proj").weight
    assert norms["pissa"] == pytest.approx(float(torch.linalg.svdvals(weight)[:4].norm()), rel=1e-5)
    assert norms["pissa_niter_16"] == pytest.approx(norms["pissa"], rel=1e-2)


def test_both_halves_are_saved_as_one_and_loaded_again() -> None:
    """A state holds [A; A0] under the name of the weight; one of another size is refused by name."""
    one, other = BesideItsStart(torch.randn(2, 5), 0), BesideItsStart(torch.randn(2, 5), 0)
    assert list(one.state_dict()) == ["weight"]
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.weight, one.weight)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        one.load_state_dict({"weight": torch.zeros(2, 5)})
    with pytest.raises(RuntimeError, match="Missing key"):
        one.load_state_dict({})


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_loftq_starts_at_the_best_update_for_what_quantisation_took(
    tiny_base: Path, quantization: Any
) -> None:
    """What is left of W - Q has the norm of its smaller singular values, and logits are nearer the 16-bit
    base's than those of the quantised base alone."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    section = AdapterSection(method="qlora", rank=16, init="loftq", quantization=quantization)
    model = load_model(Base(tiny_base, {}), dtype=torch.float32, quantization=section.base_quantization)
    plain, quantised = load(tiny_base)(input_ids=IDS).logits, model(input_ids=IDS).logits
    stored = StoredWeights.of_folder(tiny_base)
    adapted = attach(model, section, original=lambda name: stored.whole(f"{name}.weight"))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer: Any = adapted.get_base_model().get_submodule(name)
        residual = stored.whole(f"{name}.weight") - base_weight(layer.base_layer, torch.float32)
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        left = torch.linalg.svdvals(residual)[16:].norm()
        assert float((residual - update).norm()) == pytest.approx(float(left), rel=1e-4)
    started = adapted(input_ids=IDS).logits
    assert float((started - plain).norm()) < 0.9 * float((quantised - plain).norm())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_rank_beyond_a_matrix_is_refused(tiny_base: Path, init: str) -> None:
    """There is no part of rank 64 in a matrix of 32 rows; the message names it."""
    with pytest.raises(ModelError, match=r"rank is 64, and .*k_proj is a matrix of 32 x 64"):
        attach(load(tiny_base), AdapterSection(rank=64, init=init))


@pytest.mark.parametrize(
    ("layers", "numbers"), [("last 1", {1}), ([0], {0}), ([1, 0], {0, 1}), ("last 2", {0, 1})]
)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_only_the_named_layers_have_an_adapter(
    tiny_base: Path, layers: Any, numbers: set[int], targets: Any
) -> None:
    """Modules with an adapter are the targets of these layers; the closed form counts them."""
    section = AdapterSection.model_validate({"rank": 4, "layers": layers, "target_modules": targets})
    model = attach(load(tiny_base), section)
    modules = {
        name.split("layers.")[1].split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name
    }
    leaves = {name.rsplit(".", 1)[1] for name in modules}
    assert {int(name.split(".")[0]) for name in modules} == numbers
    assert len(modules) == len(numbers) * len(leaves)
    assert leaves == set(targets) if isinstance(targets, list) else len(leaves) == 7
    shape = read_shape(read_config(tiny_base))
    assert count_parameters(model)[0] == count_trainable(shape, section)


@pytest.mark.parametrize("layers", ["last 3", [2], [0, 7]])
def test_layers_that_the_base_has_not_are_refused(tiny_base: Path, layers: Any) -> None:
    """The message says how many there are."""
    section = AdapterSection.model_validate({"layers": layers})
    with pytest.raises(ModelError, match=r"adapter\.layers is .*has 2 layers, 0 to 1"):
        attach(load(tiny_base), section)

"""Loading a base: types, RoPE scaling, and weights that are missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import ModelError
from finetune.models.bases.locate import Base
from finetune.models.load import load_model
from finetune.recipe.schema.model import RopeScaling


def inverse_frequencies(folder: Path, scaling: RopeScaling | None) -> torch.Tensor:
    return load_model(Base(folder, {}), dtype=torch.float32, rope_scaling=scaling).model.rotary_emb.inv_freq


def test_linear_scaling_divides_the_frequencies(tiny_base: Path) -> None:
    """Position interpolation by 4 turns each pair a quarter as fast."""
    plain, scaled = (
        inverse_frequencies(tiny_base, s) for s in (None, RopeScaling(type="linear", factor=4.0))
    )
    assert torch.allclose(scaled * 4, plain)


def test_llama3_scaling_slows_the_long_waves_only(tiny_base: Path) -> None:
    """LLaMA 3.1's scaling leaves wavelengths under original / high, and slows those over original / low by
    the factor."""
    scaling = RopeScaling(
        type="llama3",
        factor=8.0,
        original_max_length_tokens=64,
        low_frequency_factor=1.0,
        high_frequency_factor=4.0,
    )
    plain, scaled = inverse_frequencies(tiny_base, None), inverse_frequencies(tiny_base, scaling)
    wavelengths = 2 * torch.pi / plain
    short, long = wavelengths < 64 / 4, wavelengths > 64 / 1
    assert short.any()
    assert long.any()
    assert torch.allclose(scaled[short], plain[short])
    assert torch.allclose(scaled[long] * 8, plain[long])


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_each_scaling_reaches_longer_positions(tiny_base: Path, kind: str) -> None:
    """With factor 2 the base of 256 positions takes 300 tokens, and its logits are finite."""
    llama3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0} if kind == "llama3" else {}
    scaling = RopeScaling.model_validate({"type": kind, "factor": 2.0, **llama3})
    model = load_model(Base(tiny_base, {}), dtype=torch.float32, rope_scaling=scaling)
    assert model.config.max_position_embeddings == 512
    assert model(input_ids=torch.ones((1, 300), dtype=torch.long)).logits.isfinite().all()


def copy_without(folder: Path, target: Path, lacking: str) -> None:
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if lacking not in k},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )


def test_a_missing_weight_is_named(tiny_base: Path, tmp_path: Path) -> None:
    """A base that lacks a weight is refused, not filled with random numbers."""
    copy_without(tiny_base, tmp_path / "base", "layers.1.mlp.up_proj")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(Base(tmp_path / "base", {}), dtype=torch.float32)


def test_a_truncated_file_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A safetensors file that is cut off ends in one message."""
    shutil.copytree(tiny_base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(Base(tmp_path / "base", {}), dtype=torch.float32)


def test_a_shape_that_differs_from_the_config_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Weights of another shape than config.json says end in one message."""
    shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(Base(tmp_path / "base", {}), dtype=torch.float32)


def test_no_attention_plans_for_each_new_shape(tiny_base: Path) -> None:
    """torch would take cuDNN's first on an H100, which plans for every length that packs have."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        load_model(Base(tiny_base, {}), dtype=torch.float32)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)

"""Where the fast path is installed: which layers of a peft model compute by the other files here.

Weights stay where peft has them, so saving, loading and merging know nothing of this.
"""

import logging
import types
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn

from finetune.engines.base import Engine
from finetune.engines.single import SINGLE
from finetune.errors import ModelError
from finetune.models.architectures import ArchitectureSpec, family_of
from finetune.models.architectures.base import DECODER
from finetune.models.kernels.base_products import is_int8, quantisation
from finetune.models.kernels.decoder_layer import with_fused_sums
from finetune.models.kernels.factors import FactorsOfModel
from finetune.models.kernels.lora import Layer, lora_outputs
from finetune.models.kernels.mlp import Mlp
from finetune.models.kernels.one_input import OneInput
from finetune.models.kernels.rms_norm import FrozenRmsNorm
from finetune.models.kernels.rotation import fuse_rotation
from finetune.models.kernels.swiglu import halves, two_branches, with_fused_product
from finetune.models.kernels.tiled_mlp import TiledMlp
from finetune.models.mask import kept_of

logger = logging.getLogger(__name__)


def install_fast_path(model: nn.Module, engine: Engine = SINGLE, mlp_tile_tokens: int | None = None) -> int:
    """Let the layers of a peft model compute in fewer and leaner steps; how many LoRA layers do.

    Layers that are not supported (an embedding, a masked update, several adapters, weights that ZeRO-3 cuts
    up) keep peft's own forward, and one line of the log says how many and why. So does any layer for a call
    that isn't supported: adapters merged or switched off, other types than those of training. Norms, MLPs and
    layers of one input are those that the model's family declares; other families have them computed by
    transformers.

    MLPs are computed over tiles of `mlp_tile_tokens`. Raises ModelError where not all of them can be.
    """
    install_around_lora(model, engine)
    fused, kept, gated_mlps = 0, Counter[str](), 0
    config: Any = model.config
    family = family_of(config.model_type)
    mlps, groups = (family.fused_mlps, family.shared_inputs) if family else ((), ())
    factors = FactorsOfModel(_decoder(model) if family and not engine.shards_weights else None)
    for module in list(model.modules()):
        if isinstance(module, LoraLayer):
            reason = unsupported(module, engine)
            if reason is None:
                module.forward = types.MethodType(_one_layer(module.forward, engine, factors), module)
                fused += 1
            else:
                kept[reason] += 1
    for module in list(model.modules()):
        for group in groups:
            if _all_fusable(module, engine, *group):
                layers = [getattr(module, name) for name in group]
                OneInput(layers, partial(_side_by_side, layers, engine, factors)).install()
        if (
            type(module).__name__ in mlps
            and is_silu(module.act_fn)
            and _all_fusable(module, engine, "gate_proj", "up_proj", "down_proj")
        ):
            module.forward = types.MethodType(
                _gated_mlp(module.forward, engine, factors, mlp_tile_tokens), module
            )
            gated_mlps += 1
    if mlp_tile_tokens is not None and gated_mlps < config.num_hidden_layers:
        raise ModelError(
            f"train.mlp_tile_tokens: {config.num_hidden_layers - gated_mlps} of this model's "
            f"{config.num_hidden_layers} MLPs can't be computed in tiles: that is for MLPs of a known family "
            "with a fused LoRA on gate_proj, up_proj and down_proj in every layer. Remove it."
        )
    for reason, count in kept.items():
        logger.info("%d LoRA layers are not fused: %s", count, reason)
    return fused


def install_around_lora(model: nn.Module, engine: Engine = SINGLE) -> None:
    """The same of norms, sums, positions and the product in a gated MLP, with or without LoRA layers; the log
    says once what transformers computes."""
    config: Any = model.config
    family = family_of(config.model_type)
    norms, mlps = (family.fused_norms, family.fused_mlps) if family else ((), ())
    for module in list(model.modules()):
        if type(module).__name__ in norms and _is_frozen_here(module.weight, engine):
            module.forward = types.MethodType(_norm(module.forward), module)
        elif type(module).__name__ in mlps and is_silu(module.act_fn):
            module.forward = types.MethodType(with_fused_product(module.forward, two_branches), module)
        elif family and type(module).__name__ in family.packed_mlps and is_silu(module.activation_fn):
            module.forward = types.MethodType(with_fused_product(module.forward, halves), module)
    left = [what for what, classes in (("norms", norms), ("MLPs", mlps)) if not classes]
    left += _fuse_layers(model, family, engine) if family else []
    if left:
        logger.info(
            "the %s of %s are computed by transformers' own forward", " and ".join(left), config.model_type
        )


def _decoder(model: Any) -> nn.Module:
    return getattr(model.get_base_model(), DECODER)


def _fuse_layers(model: nn.Module, family: ArchitectureSpec, engine: Engine) -> list[str]:
    """Sums and positions in the layers of a family; what isn't fused where a GPU could have it."""
    rotated = True
    layers: list[Any] = [
        module for module in model.modules() if type(module).__name__ == family.decoder_layer
    ]
    for layer in layers:
        rotated &= fuse_rotation(layer.self_attn)
        if family.norms_come_first:
            is_frozen = partial(_is_frozen_here, engine=engine)
            layer.forward = types.MethodType(with_fused_sums(layer.forward, is_frozen), layer)
    return [] if rotated else ["positions"]


def check_tiles(model_type: str, pruned: bool) -> None:
    """Raises ModelError where a base's MLPs can't be computed in tiles, whatever the adapter."""
    family = family_of(model_type)
    reason = "the base is pruned" if pruned else f"those of {model_type} are computed by transformers"
    if pruned or family is None or not family.fused_mlps:
        raise ModelError(f"train.mlp_tile_tokens: MLPs can't be computed in tiles: {reason}. Remove it.")


def unsupported(layer: LoraLayer, engine: Engine) -> str | None:
    """Why a layer can't be fused; None where it can."""
    base: Any = layer.get_base_layer()
    if type(base).__name__ not in ("Linear", "Linear4bit", "Linear8bitLt"):
        return f"it stands around a {type(base).__name__}"
    kept = engine.unfusable(base.weight)
    if kept is not None:
        return kept
    if kept_of(base) is not None:
        return "its base is pruned, and its update masked"
    variant = next(iter(layer.lora_variant.values()), None)
    if not isinstance(variant, DoraLinearVariant | None):
        return f"it is {type(variant).__name__.removesuffix('Variant')}"
    if list(layer.lora_A) != ["default"] or len(layer.active_adapters) != 1:
        return "it has several adapters"
    if layer.lora_A["default"].bias is not None or layer.lora_B["default"].bias is not None:
        return "its matrices have a bias"
    if getattr(layer, "fan_in_fan_out", False) or base.weight.requires_grad:
        return "its base is transposed, or trained"
    return None


def _is_frozen_here(weight: Any, engine: Engine) -> bool:
    return not weight.requires_grad and engine.unfusable(weight) is None


def _all_fusable(module: nn.Module, engine: Engine, *names: str) -> bool:
    layers = [getattr(module, name, None) for name in names]
    return all(isinstance(layer, LoraLayer) and unsupported(layer, engine) is None for layer in layers)


def is_silu(activation: Any) -> bool:
    """Whether an MLP's activation is the one that is fused."""
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _norm(own_forward: Any) -> Any:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        # transformers narrows float64 to float32 here, which FrozenRmsNorm doesn't.
        own = x.dtype == torch.float64 or x.dtype != self.weight.dtype
        output: torch.Tensor = (
            own_forward(x) if own else FrozenRmsNorm.apply(x, self.weight, self.variance_epsilon)
        )
        return output

    return forward


def _one_layer(own_forward: Any, engine: Engine, factors: FactorsOfModel) -> Any:
    def forward(self: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        dtype = None if arguments or options else _compute_type([self], x, engine)
        if dtype is None:
            output: torch.Tensor = own_forward(x, *arguments, **options)
            return output
        return _fused([self], x, dtype, factors, dropout_of(self))[0]

    return forward


def _gated_mlp(own_forward: Any, engine: Engine, factors: FactorsOfModel, tile_tokens: int | None) -> Any:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        layers = [self.gate_proj, self.up_proj, self.down_proj]
        dtype = None if any(map(dropout_of, layers)) else _compute_type(layers, x, engine)
        if dtype is None:
            tiles = [x] if tile_tokens is None else x.split(tile_tokens, dim=-2)
            return torch.cat([own_forward(tile) for tile in tiles], dim=-2)
        parts, matrices = tuple(map(layer_of, layers)), matrices_of(layers)
        both = factors.of(parts[:2], matrices[:4], dtype), factors.of(parts[2:], matrices[4:], dtype)
        call = parts, both, matrices
        return Mlp(*call)(x) if tile_tokens is None else TiledMlp(*call, tile_tokens)(x)

    return forward


def _side_by_side(
    layers: list[Any], engine: Engine, factors: FactorsOfModel, x: torch.Tensor
) -> Sequence[torch.Tensor] | None:
    dtype = None if any(map(dropout_of, layers)) else _compute_type(layers, x, engine)
    return None if dtype is None else _fused(layers, x, dtype, factors)


def _fused(
    layers: list[Any], x: torch.Tensor, dtype: torch.dtype, factors: FactorsOfModel, dropout: float = 0.0
) -> Sequence[torch.Tensor]:
    parts, matrices = tuple(map(layer_of, layers)), matrices_of(layers)
    return lora_outputs(x, parts, dropout, factors.of(parts, matrices, dtype), matrices)


def layer_of(layer: Any) -> Layer:
    """A LoRA layer as the kernels have it."""
    m = layer.lora_magnitude_vector["default"].weight if layer.lora_variant else None
    return Layer(layer.get_base_layer(), layer.scaling["default"], m)


def matrices_of(layers: Sequence[Any]) -> list[torch.Tensor]:
    """A and B of each LoRA layer in turn."""
    return [
        matrix
        for layer in layers
        for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    ]


def dropout_of(layer: Any) -> float:
    """The probability with which an input of a LoRA layer is dropped now."""
    dropout = layer.lora_dropout["default"]
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def _compute_type(layers: list[Any], x: torch.Tensor, engine: Engine) -> torch.dtype | None:
    """The type in which peft would multiply; None where these layers' call can't be fused."""
    if any(layer.disable_adapters or layer.merged for layer in layers):
        return None
    bases, matrices = [layer.get_base_layer() for layer in layers], matrices_of(layers)
    if any(
        engine.unfusable(base.weight) is not None for base in bases
    ):  # NF4 is cut up after it was loaded; see unsupported
        return None
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    same = all(matrix.dtype == x.dtype for matrix in matrices)
    return (
        x.dtype
        if same and all(is_int8(base) or quantisation(base) or base.weight.dtype == x.dtype for base in bases)
        else None
    )

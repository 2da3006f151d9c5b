"""LoRA on a pruned base: the mask m of its weights applies to the update too, y = x (W + m * s B A)^T, so
that what is trained is what a merge with the same zeros gives. LoRA: Hu et al. 2021, arXiv:2106.09685.

Shapes: T tokens, I inputs, O outputs, R rank. m * B A has no low rank, so the product O x I is formed. It is
not added to W: in 16 bits a small update would be lost in that sum. It is formed at each call, and again for
the backward pass, so that no layer holds one; while answers are written token by token, it is kept.
"""

import types
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper

from finetune.errors import ModelError
from finetune.models.architectures.base import DECODER
from finetune.models.bases.folder import MASK
from finetune.models.bases.shapes import stored_name
from finetune.models.mask import mask_held_by, take_mask

FEW_TOKENS = 64
"""Up to so many, forming the product takes longer than using it."""


def mask_updates(model: PeftModel) -> None:
    """Let the LoRA layers on a pruned base mask their updates.

    Raises ModelError where another kind of adapter is on a pruned layer: it would fill the zeros.
    """
    base = model.get_base_model()
    mask = mask_held_by(base)
    if mask is None:
        return
    pruned = [name if name.startswith(f"{DECODER}.") else f"{DECODER}.{name}" for name in mask.names]
    for path, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and any(
            name.startswith(f"{path}.") for name in pruned
        ):
            raise _unmaskable(path, "it is trained as a whole (modules_to_save)")
        name = stored_name(mask.names, f"{path}.weight")
        if name is None or not isinstance(module, BaseTunerLayer):
            continue
        if (reason := _why_not(module)) is not None:
            raise _unmaskable(path, reason)
        layer: Any = module
        take_mask(layer.get_base_layer(), mask, name)
        layer.forward = types.MethodType(_forward(), layer)


def _why_not(layer: Any) -> str | None:
    """Why a layer's update can't be masked; None where it can."""
    if not isinstance(layer, LoraLayer) or type(layer) is not Linear:
        return f"its adapter is a {type(layer).__name__}"
    if layer.lora_variant:
        return f"it is {type(next(iter(layer.lora_variant.values()))).__name__.removesuffix('Variant')}"
    if any(matrix.bias is not None for matrix in (*layer.lora_A.values(), *layer.lora_B.values())):
        return "its matrices have a bias"
    return None


def _unmaskable(name: str, reason: str) -> ModelError:
    return ModelError(
        f"{name} is pruned, and {reason}: what is trained would fill its zeros. Take plain LoRA "
        "(adapter.method: lora), whose update is masked."
    )


def _forward() -> Any:
    """A layer's forward, with what it remembers."""
    remembered: dict[str, tuple[Any, torch.Tensor]] = {}

    def forward(self: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if self.merged or arguments or options:
            raise ModelError("a masked adapter can't be merged in place, or be one of several in a batch.")
        output: torch.Tensor = self.base_layer(x)
        if self.disable_adapters:
            return output
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        self.base_layer.kept = kept = self.base_layer.kept.to(x.device)
        if torch.is_grad_enabled():
            remembered.clear()
        for name in self.active_adapters:
            if name not in self.lora_A:
                continue
            dropped = self.lora_dropout[name](x).to(dtype)
            a, b, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
            if torch.is_grad_enabled() or x.numel() > FEW_TOKENS * x.shape[-1]:
                output = output + MaskedUpdate.apply(dropped, a, b, kept, scale)
                continue
            written = _state(self, name, dtype)
            if name not in remembered or remembered[name][0] != written:
                remembered[name] = (written, update_of(a, b, kept, scale, dtype))
            output = output + (dropped @ remembered[name][1].T).to(output.dtype)
        return output

    return forward


def _state(layer: Any, name: str, dtype: torch.dtype) -> list[Any]:
    """What an update was formed of: torch counts up a tensor's version at each change."""
    matrices = (layer.lora_A[name], layer.lora_B[name])
    parts = (part for matrix in matrices for part in matrix.parameters())
    return [dtype, layer.scaling[name], *((id(part), part._version) for part in parts)]


class MaskedUpdate(torch.autograd.Function):
    """x (m * s B A)^T. Kept for the backward pass are x, A and B; all is computed in the type of x."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, kept: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, a, b, kept)
        ctx.scale = scale
        with torch.autocast(x.device.type, enabled=False):
            return x @ update_of(a, b, kept, scale, x.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, a, b, kept = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            gradient = gradient.to(x.dtype)
            rows = gradient.reshape(-1, gradient.shape[-1])
            # Before the mask is applied the gradient of B A is whole: this product is what masking costs.
            for_update = (rows.T @ x.reshape(-1, x.shape[-1])).mul_(kept)
            for_a = (b.to(x.dtype).T @ for_update).mul_(ctx.scale).to(a.dtype)
            for_b = (for_update @ a.to(x.dtype).T).mul_(ctx.scale).to(b.dtype)
            for_x = None
            if ctx.needs_input_grad[0]:
                for_x = gradient @ update_of(a, b, kept, ctx.scale, x.dtype)
        return for_x, for_a, for_b, None, None


def update_of(
    a: torch.Tensor, b: torch.Tensor, kept: torch.Tensor, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """m * s B A (O x I), computed in `dtype`. masked_fill takes four times as long on a CPU."""
    with torch.autocast(a.device.type, enabled=False):
        return (b.to(dtype) @ a.to(dtype)).mul_(scale).mul_(kept)


def masked_card(base: str) -> str:
    """The README.md of an adapter of a pruned base, in place of peft's own."""
    lines = [
        "---", "library_name: peft", "tags: [lora, pruned]", "---", "", "# An adapter of a pruned base", "",
        f"- base: {base}, with its `{MASK}`", "",
        "It was trained as m W + m s B A: the mask m of the base applies to the update, too. **Plain peft "
        "knows no mask**: loaded or merged by it, this is another model, whose zeros are filled. Merge it by "
        "`finetune merge`, which keeps them; the merged folder is for everybody.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"

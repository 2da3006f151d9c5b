"""Several adapters of one base in one batch: each token goes through its own row's adapter, or through none.

Plain LoRA is added to what the base made of all tokens at once (S-LoRA: Sheng et al. 2023, arXiv:2311.03285);
what else peft knows (DoRA, modules that were trained whole, rows of new tokens, masked updates) is computed
by its own forward, for the tokens of one adapter after the other.

Shapes: T tokens of a step, in a batch of one row.
"""

import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper

from finetune.errors import ModelError
from finetune.models.mask import kept_of

Adapted = BaseTunerLayer | AuxiliaryTrainingWrapper


class Segment(NamedTuple):
    """Tokens from `first` to before `end` that go through one adapter; None is the base alone."""

    adapter: str | None
    first: int
    end: int


def refuse_own_tokens(model: PeftModel) -> None:
    """Raises ModelError for adapters that put tokens of their own before a text."""
    for config in model.peft_config.values():
        if config.is_prompt_learning:
            raise ModelError(
                f"adapters of type {config.peft_type!s} put tokens of their own before each text, which no "
                "answer here is made with: take an adapter of another type."
            )


class AdapterByToken:
    """The layers of a peft model, told which adapter each token goes through."""

    def __init__(self, model: PeftModel):
        self._tokens: Sequence[Segment] = ()
        self._answers: Sequence[Segment] = ()
        base: Any = model.get_base_model()
        head = base.get_output_embeddings()
        for layer in _outermost(base):
            layer.forward = types.MethodType(self._forward(layer, of_head=layer is head), layer)

    def route(self, tokens: Sequence[Segment], answers: Sequence[Segment]) -> None:
        """From now on: `tokens` has all tokens of a step in order, `answers` those that the head sees."""
        self._tokens, self._answers = tokens, answers

    def _forward(self, layer: Any, *, of_head: bool) -> Any:
        own_forward, plain = layer.forward, _is_plain_lora(layer)

        def forward(self_: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
            segments = self._answers if of_head else self._tokens
            if plain:
                return _with_lora(self_, x, segments)
            if not segments:  # the head, in a step in which no prompt comes to its end
                segments = [Segment(None, 0, 0)]
            parts = []
            for adapter, first, end in segments:
                _activate(self_, adapter)
                parts.append(own_forward(x[:, first:end], *arguments, **options))
            return torch.cat(parts, dim=1)

        return forward


def _outermost(base: torch.nn.Module) -> list[Any]:
    """The layers that peft put in, without those that lie inside another."""
    names = [name for name, module in base.named_modules() if isinstance(module, Adapted)]
    found, last = [], None
    for name in names:  # a module comes before what lies in it
        if last is None or not name.startswith(f"{last}."):
            found.append(base.get_submodule(name))
            last = name
    return found


def _is_plain_lora(layer: Any) -> bool:
    """Whether y = x W^T + s x A^T B^T is all that the layer computes."""
    return (
        isinstance(layer, LoraLayer)
        and type(layer).__name__ in ("Linear", "Linear4bit", "Linear8bitLt")
        and not layer.lora_variant
        and kept_of(layer.get_base_layer()) is None
        and all(matrix.bias is None for matrix in layer.lora_B.values())
    )


def _with_lora(layer: Any, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """The base's output with each adapter's update, rounded as peft rounds it."""
    output: torch.Tensor = layer.base_layer(x)
    for adapter, first, end in segments:
        if adapter is None or adapter not in layer.lora_A:
            continue
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        low = x[0, first:end].to(a.dtype) @ a.T
        output[0, first:end] += (low @ b.T) * layer.scaling[adapter]
    return output


def _activate(layer: Any, adapter: str | None) -> None:
    """Let peft's own forward compute with one adapter, or none; its set_adapter would let its weights
    train."""
    for module in layer.modules():
        if isinstance(module, Adapted):
            has = adapter in module._get_available_adapters()
            module._disable_adapters = not has
            module._active_adapter = [adapter] if has else []

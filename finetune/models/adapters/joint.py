"""The decoder of a base, computed at once for the tokens of several adapters: one pass in place of one for
each.

Everything but LoRA is computed of all tokens together: attention knows the documents, norms and MLPs each
token. Where a token's adapter has matrices, they are its own (kernels/segments.py).

Shapes: T tokens of a micro-batch, D model width.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from finetune.engines.single import SINGLE
from finetune.errors import ModelError
from finetune.models.architectures import family_names, family_of
from finetune.models.architectures.base import DECODER
from finetune.models.kernels.install import (
    dropout_of,
    install_around_lora,
    is_silu,
    layer_of,
    matrices_of,
    unsupported,
)
from finetune.models.kernels.lora import factors_of
from finetune.models.kernels.noise import seed_of
from finetune.models.kernels.one_input import OneInput
from finetune.models.kernels.segments import AdapterSegment, SegmentedLora, SegmentedMlp

MLP = ("gate_proj", "up_proj", "down_proj")


class AdapterBatch(NamedTuple):
    """One adapter's micro-batch, on its way through the decoder."""

    adapter: str
    inputs: Mapping[str, Any]
    """What the decoder is called with: input_ids or inputs_embeds, position_ids (1 x T), documents, and
    prefixes where a document goes on from another (finetune.models.batch)."""
    seed: int
    """What dropout is drawn from."""


class _Running(NamedTuple):
    adapter: str
    tokens: slice
    seed: int


class JointDecoder:
    """A base's decoder for several adapters, which join and leave between two calls."""

    def __init__(self, base: PreTrainedModel):
        """`base` is the decoder's from now on; others that share its weights (finetune.models.sharing) don't
        change. Raises ModelError for a family that isn't known."""
        family = family_of(base.config.model_type)
        if family is None:
            raise ModelError(
                f"adapters of one base can be trained together for {family_names()}; this base is of type "
                f"{base.config.model_type}. Train them one after the other."
            )
        self.base = base.requires_grad_(False).train()
        self._adapters: dict[str, dict[str, LoraLayer]] = {}
        self._running: list[_Running] = []
        install_around_lora(base)
        names = {module: name for name, module in base.named_modules()}
        head = base.get_output_embeddings()
        modules: list[Any] = list(base.modules())
        for module in modules:
            if not isinstance(module, nn.Linear) or module is head:
                continue
            layer: Any = module
            compute = partial(self._product, names[layer], layer)
            layer.forward = types.MethodType(_either(compute, layer.forward), layer)
        for module in modules:
            for group in family.shared_inputs:
                layers: list[Any] = [getattr(module, name, None) for name in group]
                if all(isinstance(layer, nn.Linear) for layer in layers):
                    own = [f"{names[module]}.{name}" for name in group]
                    OneInput(layers, partial(self._products, own, layers)).install()
            if type(module).__name__ in family.fused_mlps and is_silu(module.act_fn):
                own = [f"{names[module]}.{name}" for name in MLP]
                compute = partial(self._mlp, own, module)
                module.forward = types.MethodType(_either(compute, module.forward), module)

    def join(self, adapter: str, model: PeftModel) -> None:
        """From now on calls may have tokens of this adapter. Raises ModelError where it isn't LoRA that can
        be computed so, ValueError where there is an adapter of this name."""
        if adapter in self._adapters:
            raise ValueError(f"two runs are called {adapter!r}, and their tokens would have one adapter")
        base: Any = model.get_base_model()
        layers = {name: layer for name, layer in base.named_modules() if isinstance(layer, LoraLayer)}
        reasons = {_unsupported(layer) for layer in layers.values()} - {None}
        if reasons:
            raise ModelError(
                f"this adapter can't be trained with others: {min(map(str, reasons))}. Train it alone."
            )
        self._adapters[adapter] = layers

    def leave(self, adapter: str) -> None:
        """Forget an adapter."""
        self._adapters.pop(adapter, None)

    def __call__(self, batches: Sequence[AdapterBatch]) -> list[torch.Tensor]:
        """The hidden states (1 x T x D) of each batch, made in one pass."""
        embed = self.base.get_input_embeddings()
        embedded = [_embedded(batch.inputs, embed) for batch in batches]
        lengths = [states.shape[1] for states in embedded]
        self._running = [
            _Running(batch.adapter, slice(end - length, end), batch.seed)
            for batch, length, end in zip(batches, lengths, accumulate(lengths), strict=True)
        ]
        inputs: dict[str, Any] = {
            "inputs_embeds": torch.cat(embedded, dim=1),
            "position_ids": torch.cat([batch.inputs["position_ids"] for batch in batches], dim=1),
            "documents": list(chain.from_iterable(batch.inputs["documents"] for batch in batches)),
        }
        if any("prefixes" in batch.inputs for batch in batches):
            inputs["prefixes"] = list(chain.from_iterable(_prefixes(batch.inputs) for batch in batches))
        states = getattr(self.base, DECODER)(**inputs, use_cache=False).last_hidden_state
        return list(states.split(lengths, dim=1))

    def _segments(self, names: Sequence[str], dtype: torch.dtype) -> list[AdapterSegment]:
        """What the running adapters have of layers with one input."""
        found = []
        for adapter, tokens, seed in self._running:
            layers = self._adapters[adapter]
            chosen = [number for number, name in enumerate(names) if name in layers]
            if not chosen:
                continue
            # One mask for each layer, as peft draws them.
            dropout = dropout_of(layers[names[chosen[0]]])
            for own in [[number] for number in chosen] if dropout else [chosen]:
                loras = [layers[names[number]] for number in own]
                parts, matrices = list(map(layer_of, loras)), matrices_of(loras)
                found.append(
                    AdapterSegment(
                        tokens, own, parts, factors_of(parts, matrices, dtype), matrices, dropout,
                        seed_of(seed, names[own[0]]) if dropout else 0,
                    )
                )  # fmt: skip
        return found

    def _products(
        self, names: Sequence[str], bases: Sequence[nn.Linear], x: torch.Tensor
    ) -> Sequence[torch.Tensor] | None:
        """The layers' outputs; None where no running adapter is on any of them."""
        segments = self._segments(names, _compute_type(x))
        if not segments:
            return None
        matrices = [matrix for segment in segments for matrix in segment.matrices]
        outputs: tuple[torch.Tensor, ...] = SegmentedLora.apply(x, bases, segments, *matrices)
        return outputs

    def _product(self, name: str, base: nn.Linear, x: torch.Tensor) -> torch.Tensor | None:
        """The same of one layer."""
        outputs = self._products([name], [base], x)
        return None if outputs is None else outputs[0]

    def _mlp(self, names: Sequence[str], mlp: Any, x: torch.Tensor) -> torch.Tensor | None:
        dtype = _compute_type(x)
        both = self._segments(names[:2], dtype), self._segments(names[2:], dtype)
        if not all(both):
            return None
        matrices = [matrix for segment in chain(*both) for matrix in segment.matrices]
        bases = [getattr(mlp, name) for name in MLP]
        output: torch.Tensor = SegmentedMlp.apply(x, bases, both, dtype, *matrices)
        return output


def _unsupported(layer: LoraLayer) -> str | None:
    return "it is DoRA" if layer.lora_variant else unsupported(layer, SINGLE)


def _either(compute: Callable[[torch.Tensor], torch.Tensor | None], own_forward: Any) -> Any:
    """A forward: what is computed, or the module's own where that is None."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        found = compute(x)
        output: torch.Tensor = own_forward(x) if found is None else found
        return output

    return forward


def _embedded(inputs: Mapping[str, Any], embed: nn.Module) -> torch.Tensor:
    given = inputs.get("inputs_embeds")
    states: torch.Tensor = embed(inputs["input_ids"]) if given is None else given
    return states


def _prefixes(inputs: Mapping[str, Any]) -> Sequence[int]:
    return inputs.get("prefixes") or [0] * len(inputs["documents"])


def _compute_type(x: torch.Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

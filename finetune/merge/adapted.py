"""Base and adapters -> the merged weights, tensor by tensor, as something that is read: nothing is computed before."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune.errors import MergeError
from finetune.merge.tensors import StoredWeights, Weights, hash_of, ranges
from finetune.merge.updates import AddedBias, LowRank, Operation, Replaced, TokenRows, Update, parts_of, scale_of
from finetune.model.inspect import ADAPTER_WEIGHTS, read_adapter_config

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"

UNDERSTOOD = frozenset({
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "r",
    "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "trainable_token_indices", "loftq_config", "eva_config", "runtime_config", "lora_bias",
    "qalora_group_size",
})  # fmt: skip
"""Keys of adapter_config.json that are followed here, or decide nothing once the training is over. (peft itself ignores
fan_in_fan_out for the linear layers of a LLaMA.)"""

KEEPS_BASE = (True, False, "true", "gaussian", "eva", "orthogonal")
"""Ways to initialise that leave the base as it is. The others (PiSSA, OLoRA ...) take a part of it into the adapter."""


@dataclass
class Adapter:
    """An adapter folder, its config and its weights' header."""

    folder: Path
    config: dict[str, Any] = field(init=False)
    weights: StoredWeights = field(init=False)

    def __post_init__(self) -> None:
        """Raises ModelError or MergeError where it is no adapter folder, or damaged."""
        self.config = read_adapter_config(self.folder)
        self.weights = StoredWeights([self.folder / ADAPTER_WEIGHTS])

    def why_not_streamed(self) -> str | None:
        """What only peft itself can merge; None where there is nothing of the kind."""
        if self.config.get("peft_type") != "LORA":
            return f"it is of type {self.config.get('peft_type')}"
        if self.config.get("init_lora_weights", True) not in KEEPS_BASE:
            return f"it was initialised with {self.config['init_lora_weights']}, which takes a part of the base"
        strange = sorted(key for key, value in self.config.items() if value and key not in UNDERSTOOD)
        if strange:
            return f"it uses {', '.join(strange)}"
        if self.config.get("use_dora") and any("lora_embedding_A" in name for name in self.weights.names()):
            return "it has DoRA on an embedding"
        return None


class Updates:
    """What adapters, in order, do to a base."""

    def __init__(self, base: StoredWeights, config: dict[str, Any], adapters: Sequence[Adapter]):
        """Raises MergeError where an adapter doesn't fit the base, or a tensor of it has no place there."""
        self.base, self.tied = base, bool(config.get("tie_word_embeddings", False))
        self.by_name: dict[str, Update] = {}
        for adapter in adapters:
            parts = parts_of(adapter.weights)
            for module, names in parts.items():
                self._add(adapter, module, names)
            self._refuse_absent(adapter, parts)
        self.stays_tied = self.tied and self._settle_tie(adapters)
        self.vocabulary = self._check_vocabulary()

    def source(self, name: str) -> str:
        """The base's tensor that a tensor of the merged model begins as: a tied head begins as the embedding."""
        if self.tied and name == f"{HEAD}.weight":
            name = f"{EMBEDDING}.weight"
        for found in (name, name.removeprefix("model.")):
            if found in self.base.tensors:
                return found
        raise KeyError(name)

    def _add(self, adapter: Adapter, module: str, names: dict[str, str]) -> None:
        weights = adapter.weights
        if "weight" in names:
            self._put(adapter, f"{module}.weight", Replaced(weights, names["weight"]), weights.shape(names["weight"]))
        if "bias" in names:
            self._put(adapter, f"{module}.bias", Replaced(weights, names["bias"]), weights.shape(names["bias"]))
        for kind, pair in (
            ("linear", ("lora_A.weight", "lora_B.weight")),
            ("embedding", ("lora_embedding_A", "lora_embedding_B")),
        ):
            if not any(part in names for part in pair):
                continue
            if not all(part in names for part in pair):
                raise MergeError(f"the adapter in {adapter.folder} holds only one of {module}'s two matrices: it is damaged.")
            first, second = (weights.shape(names[part]) for part in pair)
            if first[0] != second[1]:
                raise MergeError(
                    f"the adapter in {adapter.folder}: {module} has an A of shape {first} and a B of shape {second}."
                )
            scale = scale_of(adapter.config, module, first[0])
            magnitude = names.get("lora_magnitude_vector")
            operation = LowRank(weights, names[pair[0]], names[pair[1]], scale, magnitude, kind == "embedding")
            shape = (second[0], first[1]) if kind == "linear" else (first[1], second[0])
            self._put(adapter, f"{module}.weight", operation, shape)
            if "lora_B.bias" in names:
                bias = names["lora_B.bias"]
                self._put(adapter, f"{module}.bias", AddedBias(weights, bias, scale), weights.shape(bias))
        if "trainable_tokens_delta" in names:
            self._put_tokens(adapter, module, names["trainable_tokens_delta"])

    def _put_tokens(self, adapter: Adapter, module: str, name: str) -> None:
        indices = adapter.config.get("trainable_token_indices") or {}
        if isinstance(indices, list):
            indices = {"embed_tokens": indices}
        tokens = next((found for key, found in indices.items() if module == key or module.endswith(f".{key}")), None)
        rows, width = adapter.weights.shape(name)
        if tokens is None or len(tokens) != rows:
            raise MergeError(f"the adapter in {adapter.folder} holds {rows} rows of {module}, and its config names {tokens}.")
        shape = self._shape(adapter, f"{module}.weight")
        grown = max(shape[0], max(tokens) + 1)
        if not set(range(shape[0], grown)) <= set(tokens):
            raise MergeError(
                f"the adapter in {adapter.folder} was trained on an embedding of at least {grown} rows, of which the base has "
                f"{shape[0]} and the adapter {rows}: what stood in the others is not known."
            )
        operation = TokenRows(adapter.weights, name, tuple(tokens))
        self._put(adapter, f"{module}.weight", operation, (grown, width), grows=True)

    def _put(self, adapter: Adapter, name: str, operation: Operation, shape: tuple[int, ...], *, grows: bool = False) -> None:
        there = self._shape(adapter, name)
        vocabulary = name in (f"{EMBEDDING}.weight", f"{HEAD}.weight") and (grows or isinstance(operation, Replaced))
        if shape != there and not (vocabulary and shape[1:] == there[1:]):
            raise MergeError(
                f"the adapter in {adapter.folder} does not fit the base: size mismatch, it changes {name} as {shape}, and in "
                f"the base it is {there}. It belongs to another base, or to one with another vocabulary; name the right one "
                "with --base."
            )
        update = self.by_name.setdefault(name, Update(shape, []))
        update.shape = shape
        if isinstance(operation, Replaced):
            update.operations.clear()
        update.operations.append(operation)

    def _shape(self, adapter: Adapter, name: str) -> tuple[int, ...]:
        if name in self.by_name:
            return self.by_name[name].shape
        try:
            return self.base.shape(self.source(name))
        except KeyError:
            raise MergeError(
                f"the adapter in {adapter.folder} does not fit the base: it has weights beyond the base's modules, such as "
                f"{name}. It belongs to a base with another number of layers, or another architecture; "
                "name the right one with --base."
            ) from None

    def _refuse_absent(self, adapter: Adapter, parts: dict[str, dict[str, str]]) -> None:
        """Raises MergeError where the config names a module of the base for which the file has nothing."""
        if adapter.config.get("layers_to_transform") is not None:
            return  # then not every module of a target's name is meant
        held = {module for module, names in parts.items() if any(part.startswith("lora_") for part in names)}
        modules = {name.removesuffix(".weight") for name in self.base.names() if name.endswith(".weight")}
        modules = {module if module.startswith(("model.", HEAD)) else f"model.{module}" for module in modules}
        wanted = {
            module
            for module in modules
            if _matches(module, adapter.config.get("target_modules"))
            and not _matches(module, adapter.config.get("exclude_modules"))
        }
        absent = sorted(wanted - held)
        if absent:
            raise MergeError(
                f"the adapter in {adapter.folder} does not fit the base: it has no weights for {absent[0]} ({len(absent)} in "
                "all). It belongs to a base with another number of layers; name the right one with --base."
            )

    def _settle_tie(self, adapters: Sequence[Adapter]) -> bool:
        """Whether head and embedding can still be one tensor.

        peft keeps them one where only rows of tokens were trained, and where an embedding that grew was saved whole; an
        update that was meant for one of the two does not reach the other.
        """
        embedding, head = (self.by_name.get(f"{module}.weight") for module in (EMBEDDING, HEAD))
        if embedding is not None and head is not None and _same_tensor(embedding, head):
            del self.by_name[f"{HEAD}.weight"]
            return True
        if head is not None:
            return False
        if embedding is None:
            return True
        own_copy = any(_matches(EMBEDDING, adapter.config.get("modules_to_save")) for adapter in adapters)
        return not own_copy and all(isinstance(operation, TokenRows | Replaced) for operation in embedding.operations)

    def _check_vocabulary(self) -> int:
        sizes = {}
        for module in (EMBEDDING, HEAD):
            name = f"{module}.weight"
            if name in self.by_name:
                sizes[name] = self.by_name[name].shape[0]
            elif module == EMBEDDING or not self.stays_tied:
                sizes[name] = self.base.shape(self.source(name))[0]
        if len(set(sizes.values())) > 1:
            raise MergeError(
                f"embedding and head would have different numbers of tokens: {sizes}. The adapter lacks one of them."
            )
        return next(iter(sizes.values()))


def _matches(module: str, wanted: object) -> bool:
    """peft's rule: a regular expression for the whole name, or names that the module's name is, or ends with after a dot."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None if wanted != "all-linear" else False
    return isinstance(wanted, list) and any(module == name or module.endswith(f".{name}") for name in wanted)


def _same_tensor(one: Update, other: Update) -> bool:
    (first, *more), (second, *others) = one.operations, other.operations
    if more or others or not isinstance(first, Replaced) or not isinstance(second, Replaced):
        return False
    return hash_of(first.adapter, first.name) == hash_of(second.adapter, second.name)


class MergedWeights:
    """The merged model, computed block by block as it is read, and rounded once: for 16-bit tensors in float32, for those in
    float32 in float64."""

    def __init__(self, base: Weights, updates: Updates, dtype: torch.dtype | None):
        """`dtype` is what floating-point tensors are rounded to; each tensor's own type in the base where it is None."""
        self.base, self.updates, self._dtype = base, updates, dtype
        head = f"{HEAD}.weight"
        self._names = [name for name in base.names() if not (name == head and updates.stays_tied)]
        if updates.tied and not updates.stays_tied and head not in self._names:
            self._names.append(head)

    @property
    def is_wide(self) -> bool:
        """Whether every tensor is asked for in float32."""
        return self._dtype == torch.float32

    def names(self) -> Sequence[str]:
        """The merged model's tensors, in the base's order; a head that got free of the embedding comes last."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, with added tokens."""
        update = self.update(name)
        return update.shape if update is not None else self.base.shape(self.updates.source(name))

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is stored."""
        own = self.base.dtype(self.updates.source(name))
        return own if self._dtype is None or not own.is_floating_point else self._dtype

    def update(self, name: str) -> Update | None:
        """What happens to a tensor of the merged model."""
        return self.updates.by_name.get(name) or self.updates.by_name.get(f"model.{name}")

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a merged tensor. Raises MergeError where a number isn't finite in its type."""
        update, dtype = self.update(name), self.dtype(name)
        if update is None:
            for first, block in self.base.blocks(self.updates.source(name)):
                yield first, block if block.dtype == dtype else finite(name, block.to(dtype))
            return
        change, known = update.ready(), 0
        if not update.replaced:
            for first, block in self.base.blocks(self.updates.source(name)):
                yield first, finite(name, change(block.to(arithmetic_for(dtype)), first).to(dtype))
                known = first + len(block)
        for first, last in ranges(update.shape, known):
            yield first, finite(name, change(_empty(update, first, last, dtype), first).to(dtype))

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Some rows of a merged tensor. Raises MergeError where a number isn't finite in its type."""
        update, dtype = self.update(name), self.dtype(name)
        source = self.updates.source(name)
        if update is None:
            return self.base.rows(source, first, last).to(dtype)
        known = 0 if update.replaced else self.base.shape(source)[0]
        held = [self.base.rows(source, first, min(last, known)).to(arithmetic_for(dtype))] if first < known else []
        if last > known:
            held.append(_empty(update, max(first, known), last, dtype))
        return finite(name, update.ready()(torch.cat(held), first).to(dtype))


def _empty(update: Update, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that the update brings: it sets each of them."""
    return torch.zeros(last - first, *update.shape[1:], dtype=arithmetic_for(dtype))


def arithmetic_for(dtype: torch.dtype) -> torch.dtype:
    """What a tensor of that type is computed in, so that rounding to it is the one rounding that counts."""
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32


def finite(name: str, block: torch.Tensor) -> torch.Tensor:
    """The block. Raises MergeError where a number of it isn't finite."""
    if block.numel() and not all(map(torch.isfinite, torch.aminmax(block))):
        raise MergeError(
            f"the merged weight of {name} is not finite in {block.dtype}: the adapter (or the base) is damaged, or the update "
            "is too large for that type."
        )
    return block

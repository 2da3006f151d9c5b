"""Base and adapters -> the merged weights, tensor by tensor, as something that is read: nothing is computed
before."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from finetune.errors import MergeError
from finetune.merging.adapter import Adapter, matches
from finetune.merging.deltas import (
    AddedBias,
    LowRank,
    Operation,
    Pruned,
    Replaced,
    TokenRows,
    Update,
    scale_of,
)
from finetune.merging.heads import SCORE
from finetune.merging.rounding.base import NEAREST, ROUNDED_TYPES, Rounding
from finetune.models.architectures.base import DECODER, EMBEDDING, LM_HEAD, last_part
from finetune.models.bases.shapes import stored_name
from finetune.models.mask import Mask
from finetune.models.safetensors import StoredWeights, Weights, hash_of, ranges
from finetune.recipe.heads import classifies

NOTHING = 1e-6
"""A change of so large a share of the largest number is none."""
DEAD = (
    "warning: the adapter changes no weight of the base: all its updates are 0. It was not trained, or was "
    "saved before it was (or without its weights)"
)


class Updates:
    """What adapters, in order, do to a base: each is put on top of what the one before left."""

    def __init__(self, base: StoredWeights, config: dict[str, Any], adapters: Sequence[Adapter]):
        """Raises MergeError where an adapter doesn't fit the base, or a tensor of it has no place there."""
        self.base = base
        # A classification head is nobody's twin, and its rows are no tokens.
        self.predicts = not classifies(config)
        self.tied = (
            self.predicts
            and bool(config.get("tie_word_embeddings", False))
            and not _stores_another_head(base)
        )
        self.stays_tied = self.tied
        self.by_name: dict[str, Update] = {}
        for adapter in adapters:
            parts = adapter.parts()
            self._put_adapter(adapter, self._without_twins(adapter, parts))
            self._refuse_absent(adapter, parts)
        if base.mask is not None:
            self._keep_zeros(base.mask)
        self.vocabulary = self._check_vocabulary()

    def _keep_zeros(self, mask: Mask) -> None:
        """Let the mask of a pruned base apply to all that adapters add: m W + m s B A."""
        for name, update in self.by_name.items():
            source = stored_name(self.base.tensors, name)
            if source not in mask.names:
                continue
            if not update.is_plain_lora:
                raise MergeError(
                    f"{name} is pruned, and the adapter changes it otherwise than by plain LoRA (DoRA, or as "
                    "a whole), which no mask is applied to in training: it would fill the zeros."
                )
            update.operations.append(Pruned(mask, source, update.shape))

    def source(self, name: str) -> str:
        """The base's tensor that a tensor of the merged model begins as: a tied head begins as the
        embedding."""
        if self.tied and name == f"{LM_HEAD}.weight":
            name = f"{EMBEDDING}.weight"
        found = stored_name(self.base.tensors, name)
        if found is None:
            raise KeyError(name)
        return found

    def _without_twins(self, adapter: Adapter, parts: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        """What was saved of a tied head beside the same of the embedding, or in its place, is the
        embedding's."""
        if not self.stays_tied:
            return parts
        embedding, head = dict(parts.get(EMBEDDING, {})), dict(parts.get(LM_HEAD, {}))
        trained_apart = any(
            matches(module, adapter.config["modules_to_save"]) for module in (EMBEDDING, LM_HEAD)
        )
        for part in ("trainable_tokens_delta", *(() if trained_apart else ("weight",))):
            if part == "weight" and part in head and part not in embedding:
                embedding[part] = head.pop(part)
            elif part in head and part in embedding:
                same = hash_of(adapter.weights, embedding[part]) == hash_of(adapter.weights, head[part])
                head = {name: held for name, held in head.items() if name != part or not same}
        return parts | {
            module: held
            for module, held in ((EMBEDDING, embedding), (LM_HEAD, head))
            if held or module in parts
        }

    def _put_adapter(self, adapter: Adapter, parts: dict[str, dict[str, str]]) -> None:
        """All of an adapter: what a tied head has too first, then what gives the head weights of its own."""
        # Saved whole because the vocabulary grew, and not because it was trained: rows and updates are on top
        # of it.
        grown = {
            module: parts[module]["weight"]
            for module in (EMBEDDING, LM_HEAD)
            if "weight" in parts.get(module, {}) and not matches(module, adapter.config["modules_to_save"])
        }
        rows = {
            module: names["trainable_tokens_delta"]
            for module, names in parts.items()
            if "trainable_tokens_delta" in names
        }
        if EMBEDDING in grown:
            self._put_whole(adapter, EMBEDDING, "weight", grown[EMBEDDING])
        if LM_HEAD in rows:  # which are not the embedding's: peft then keeps each side's to itself
            self._part_head()
        for module in rows.keys() - {LM_HEAD}:
            self._put_tokens(adapter, module, rows[module])
        if _separates(adapter, parts):
            self._part_head()
        if LM_HEAD in grown:
            self._put_whole(adapter, LM_HEAD, "weight", grown[LM_HEAD])
        if LM_HEAD in rows:
            self._put_tokens(adapter, LM_HEAD, rows[LM_HEAD])
        for module, names in parts.items():
            self._put_module(
                adapter, module, {part: name for part, name in names.items() if name != grown.get(module)}
            )

    def _part_head(self) -> None:
        """Let a tied head have weights of its own: what happened to the embedding so far happened to it as
        well."""
        if self.stays_tied:
            self.stays_tied = False
            if (before := self.by_name.get(f"{EMBEDDING}.weight")) is not None:
                self.by_name[f"{LM_HEAD}.weight"] = Update(before.shape, list(before.operations))

    def _put_module(self, adapter: Adapter, module: str, names: dict[str, str]) -> None:
        for part in ("weight", "bias"):
            if part in names:
                self._put_whole(adapter, module, part, names[part])
        if any(part in names for part in ("lora_A.weight", "lora_B.weight")):
            self._put_low_rank(adapter, module, names, "lora_A.weight", "lora_B.weight")
        if any(part in names for part in ("lora_embedding_A", "lora_embedding_B")):
            self._put_low_rank(adapter, module, names, "lora_embedding_A", "lora_embedding_B")

    def _put_whole(self, adapter: Adapter, module: str, part: str, name: str) -> None:
        self._put(adapter, f"{module}.{part}", Replaced(adapter.weights, name), adapter.weights.shape(name))

    def _put_low_rank(self, adapter: Adapter, module: str, names: dict[str, str], a: str, b: str) -> None:
        weights, embedding = adapter.weights, a == "lora_embedding_A"
        if a not in names or b not in names:
            raise MergeError(
                f"the adapter in {adapter.folder} holds only one of {module}'s two matrices: it is damaged."
            )
        first, second = weights.shape(names[a]), weights.shape(names[b])
        if len(first) != 2 or len(second) != 2 or first[0] != second[1] or not first[0]:
            raise MergeError(
                f"the adapter in {adapter.folder}: {module} has an A of shape {first} and a B of shape "
                f"{second}."
            )
        scale, magnitude = scale_of(adapter.config, module, first[0]), names.get("lora_magnitude_vector")
        shape = (first[1], second[0]) if embedding else (second[0], first[1])
        if magnitude is not None and torch.Size(weights.shape(magnitude)).numel() != shape[0]:
            held = weights.shape(magnitude)
            raise MergeError(
                f"the adapter in {adapter.folder}: {module} has {shape[0]} rows, and magnitudes of shape "
                f"{held}."
            )
        self._put(
            adapter,
            f"{module}.weight",
            LowRank(weights, names[a], names[b], scale, magnitude, embedding),
            shape,
        )
        if "lora_B.bias" in names:
            bias = names["lora_B.bias"]
            self._put(adapter, f"{module}.bias", AddedBias(weights, bias, scale), weights.shape(bias))

    def _put_tokens(self, adapter: Adapter, module: str, name: str) -> None:
        indices = adapter.config["trainable_token_indices"] or {}
        if isinstance(indices, list):
            indices = {last_part(EMBEDDING): indices}
        tokens = next((found for key, found in indices.items() if matches(module, [key])), None)
        held = adapter.weights.shape(name)
        if tokens is None or len(held) != 2 or len(tokens) != held[0] or len(set(tokens)) != len(tokens):
            raise adapter.contradiction(
                f"the file holds rows of shape {held} for {module}, and the config names tokens {tokens}"
            )
        shape = self._shape(adapter, f"{module}.weight")
        grown = max(shape[0], max(tokens, default=0) + 1)
        if not set(range(shape[0], grown)) <= set(tokens):
            raise MergeError(
                f"the adapter in {adapter.folder} was trained on an embedding of at least {grown} rows, of "
                f"which the base has {shape[0]} and the adapter {held[0]}: what stood in the others is not "
                "known."
            )
        self._put(
            adapter,
            f"{module}.weight",
            TokenRows(adapter.weights, name, tuple(tokens)),
            (grown, held[1]),
            grows=True,
        )

    def _put(
        self,
        adapter: Adapter,
        name: str,
        operation: Operation,
        shape: tuple[int, ...],
        *,
        grows: bool = False,
    ) -> None:
        there = self._shape(adapter, name)
        vocabulary = name in (f"{EMBEDDING}.weight", f"{LM_HEAD}.weight") and (
            grows or isinstance(operation, Replaced)
        )
        if shape != there and not (vocabulary and shape[1:] == there[1:]):
            raise MergeError(
                f"the adapter in {adapter.folder} does not fit the base: size mismatch, it changes {name} as "
                f"{shape}, and in the base it is {there}. It belongs to another base, or to one with another "
                "vocabulary; name the right one with --base."
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
            module, _, leaf = name.rpartition(".")
            if leaf == "bias" and stored_name(self.base.tensors, f"{module}.weight") is not None:
                raise MergeError(
                    f"the adapter in {adapter.folder} trained a bias of {module} (bias or lora_bias in its "
                    "config), and the base has none there, so a merged model has no place for it: keep the "
                    "adapter beside its base."
                ) from None
            raise MergeError(
                f"the adapter in {adapter.folder} does not fit the base: it has weights beyond the base's "
                f"modules, such as {name}. It belongs to a base with another number of layers, or another "
                "architecture; name the right one with --base."
            ) from None

    def _refuse_absent(self, adapter: Adapter, parts: dict[str, dict[str, str]]) -> None:
        """Raises MergeError where the config names a module of the base for which the file has nothing."""
        held = {module for module, names in parts.items() if any(part.startswith("lora_") for part in names)}
        matrices = (
            name for name in self.base.names() if name.endswith(".weight") and len(self.base.shape(name)) == 2
        )
        modules = {name.removesuffix(".weight") for name in matrices}
        modules = {
            module if module.startswith((f"{DECODER}.", LM_HEAD, SCORE)) else f"{DECODER}.{module}"
            for module in modules
        }
        absent = sorted(module for module in modules - held if adapter.targets(module))
        if absent:
            raise MergeError(
                f"the adapter in {adapter.folder} does not fit the base: it has no weights for {absent[0]} "
                f"({len(absent)} in all). It belongs to a base with another number of layers; name the right "
                "one with --base."
            )

    def _check_vocabulary(self) -> int:
        sizes = {}
        for module in (EMBEDDING, LM_HEAD):
            name = f"{module}.weight"
            if name in self.by_name:
                sizes[name] = self.by_name[name].shape[0]
            elif module == EMBEDDING or (self.predicts and not self.stays_tied):
                sizes[name] = self.base.shape(self.source(name))[0]
        if len(set(sizes.values())) > 1:
            raise MergeError(
                f"embedding and head would have different numbers of tokens: {sizes}. The adapter lacks one "
                "of them."
            )
        return next(iter(sizes.values()))


def _stores_another_head(base: StoredWeights) -> bool:
    """Whether a base whose config ties the head stores one that isn't the embedding: transformers then
    doesn't tie them."""
    embedding, head = stored_name(base.tensors, f"{EMBEDDING}.weight"), f"{LM_HEAD}.weight"
    return embedding is not None and head in base.tensors and hash_of(base, head) != hash_of(base, embedding)


def _separates(adapter: Adapter, parts: dict[str, dict[str, str]]) -> bool:
    """Whether an adapter gives a tied head weights of its own.

    peft keeps the two one where only rows of tokens were trained, and where an embedding that grew was saved
    whole; an update that was meant for one of the two does not reach the other.
    """
    embedding = parts.get(EMBEDDING, {})
    own_copy = "weight" in embedding and matches(EMBEDDING, adapter.config["modules_to_save"])
    return bool(parts.get(LM_HEAD)) or "lora_embedding_A" in embedding or own_copy


class MergedWeights:
    """The merged model, computed block by block as it is read, and rounded once: for 16-bit tensors in
    float32, for those in float32 in float64."""

    def __init__(
        self, base: Weights, updates: Updates, dtype: torch.dtype | None, rounding: Rounding = NEAREST
    ):
        """`dtype` is what floating-point tensors are rounded to; each tensor's own type in the base where it
        is None. `rounding` is how those become 16-bit ones that an adapter changes."""
        self.base, self.updates, self._dtype, self.rounding = base, updates, dtype, rounding
        head = f"{LM_HEAD}.weight"
        self._names = [name for name in base.names() if not (name == head and updates.stays_tied)]
        if updates.tied and not updates.stays_tied and head not in self._names:
            self._names.append(head)

    @property
    def is_wide(self) -> bool:
        """Whether every tensor is asked for in float32."""
        return self._dtype == torch.float32

    def names(self) -> Sequence[str]:
        """The merged model's tensors, in the base's order; a head that got free of the embedding comes
        last."""
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
        return self.updates.by_name.get(name) or self.updates.by_name.get(f"{DECODER}.{name}")

    def changes_nothing(self) -> bool:
        """Whether every tensor is the base's, but for rounding: the adapter was not trained, or not saved.
        Asked in float32."""
        for name in self._names:
            if self.update(name) is None:
                continue
            source = self.updates.source(name)
            if self.shape(name) != self.base.shape(source):
                return False
            for (_, mine), (_, its) in zip(self.blocks(name), self.base.blocks(source), strict=True):
                if not are_alike(mine, its):
                    return False
        return True

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
                yield first, self._rounded(name, change(block.to(arithmetic_for(dtype)), first), first)
                known = first + len(block)
        for first, last in ranges(update.shape, known):
            yield first, self._rounded(name, change(_empty(update, first, last, dtype), first), first)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Some rows of a merged tensor. Raises MergeError where a number isn't finite in its type."""
        update, dtype = self.update(name), self.dtype(name)
        source = self.updates.source(name)
        if update is None:
            return self.base.rows(source, first, last).to(dtype)
        known = 0 if update.replaced else self.base.shape(source)[0]
        held = (
            [self.base.rows(source, first, min(last, known)).to(arithmetic_for(dtype))]
            if first < known
            else []
        )
        if last > known:
            held.append(_empty(update, max(first, known), last, dtype))
        return self._rounded(name, update.ready()(torch.cat(held), first), first)

    def rounded_by(self, rounding: Rounding) -> "MergedWeights":
        """The same merge, rounded otherwise."""
        return type(self)(self.base, self.updates, self._dtype, rounding)

    def rounds(self, name: str) -> bool:
        """Whether a tensor's rounding counts: an adapter changes it, and it is stored in 16 bits."""
        return self.update(name) is not None and self.dtype(name) in ROUNDED_TYPES

    def _rounded(self, name: str, exact: torch.Tensor, first: int) -> torch.Tensor:
        dtype = self.dtype(name)
        rounded = (
            self.rounding.rounded(name, exact, first, dtype) if dtype in ROUNDED_TYPES else exact.to(dtype)
        )
        return finite(name, rounded)


def are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape are the same, but for rounding."""
    if not other.numel():
        return True
    return bool((one.double() - other.double()).abs().max() <= NOTHING * other.double().abs().max())


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
            f"the merged weight of {name} is not finite in {block.dtype}: the adapter (or the base) is "
            "damaged, or the update is too large for that type."
        )
    return block

"""What an adapter changes in each tensor of its base, read from its config and its header; the numbers are
read when used.

LoRA: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; DoRA: Liu et al. 2024,
arXiv:2402.09353. Shapes: a base weight has N rows (outputs, or tokens) and M columns; R is the rank.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from finetune.errors import MergeError
from finetune.models.mask import Mask
from finetune.models.safetensors import StoredWeights, hash_of

WeightChange = Callable[[torch.Tensor, int], torch.Tensor]
"""(rows in a wide type, number of the first) -> the rows as the adapter has them; the rows given may be
overwritten."""


class Operation(Protocol):
    """One change of one tensor. All of them change each row by itself, so a tensor can go through block by
    block."""

    def ready(self) -> WeightChange:
        """Read what is needed. Raises MergeError where a number isn't finite."""
        ...


@dataclass(frozen=True)
class LowRank:
    """W + scale B A; with DoRA, each row is then given its trained length."""

    adapter: StoredWeights
    first: str
    """The name of A (R x M); of an embedding's A, R x N."""
    second: str
    """The name of B (N x R); of an embedding's B, M x R."""
    scale: float
    magnitude: str | None = None
    embedding: bool = False

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """B (N x R) and A (R x M), without the scale, in float32; an embedding's two are turned into these.

        Raises MergeError where a number isn't finite.
        """
        first, second = read_finite(self.adapter, self.first), read_finite(self.adapter, self.second)
        return (first.T.contiguous(), second.T.contiguous()) if self.embedding else (second, first)

    def ready(self) -> WeightChange:
        """Read A, B and the lengths of the rows."""
        left, right = self.factors()
        lengths = None if self.magnitude is None else read_finite(self.adapter, self.magnitude).flatten()

        def change(rows: torch.Tensor, start: int) -> torch.Tensor:
            part = slice(start, start + len(rows))
            rows.addmm_(left[part].to(rows.dtype), right.to(rows.dtype), alpha=self.scale)
            if lengths is not None:
                own = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
                rows *= (lengths[part].to(rows.dtype) / own)[:, None]  # one of zeros stays one
            return rows

        return change


@dataclass(frozen=True)
class Replaced:
    """A tensor that was trained as a whole."""

    adapter: StoredWeights
    name: str

    def ready(self) -> WeightChange:
        """Nothing is read before its rows are asked for: it may be a large embedding."""

        known = self.adapter.shape(self.name)[0]

        def change(rows: torch.Tensor, start: int) -> torch.Tensor:
            last = min(start + len(rows), known)
            found = self.adapter.rows(self.name, min(start, last), last).to(rows.dtype)
            if not bool(torch.isfinite(found).all()):
                raise not_finite(self.adapter, self.name)
            # Rows beyond are those of tokens that another adapter added.
            rows[: len(found)] = found
            rows[len(found) :] = 0
            return rows

        return change


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding or a head that were trained by themselves."""

    adapter: StoredWeights
    name: str
    tokens: tuple[int, ...]

    def ready(self) -> WeightChange:
        """Read the rows."""
        values = read_finite(self.adapter, self.name)

        def change(rows: torch.Tensor, start: int) -> torch.Tensor:
            for value, token in zip(values, self.tokens, strict=True):
                if start <= token < start + len(rows):
                    rows[token - start] = value.to(rows.dtype)
            return rows

        return change


@dataclass(frozen=True)
class AddedBias:
    """b + scale c, where LoRA's B has a bias c."""

    adapter: StoredWeights
    name: str
    scale: float

    def ready(self) -> WeightChange:
        """Read the bias."""
        values = read_finite(self.adapter, self.name)

        def change(rows: torch.Tensor, start: int) -> torch.Tensor:
            return rows.add_(values[start : start + len(rows)].to(rows.dtype), alpha=self.scale)

        return change


@dataclass(frozen=True)
class Pruned:
    """m * W: what a pruned base lacks stays 0, whatever was added to it."""

    mask: Mask
    name: str
    """The base's tensor."""
    shape: tuple[int, ...]

    def ready(self) -> WeightChange:
        """Read the mask."""
        pruned = ~self.mask.kept(self.name, self.shape)

        def change(rows: torch.Tensor, start: int) -> torch.Tensor:
            return rows.masked_fill_(pruned[start : start + len(rows)], 0)

        return change


def read_finite(adapter: StoredWeights, name: str) -> torch.Tensor:
    """A tensor of an adapter in float32. Raises MergeError where a number isn't finite."""
    values = adapter.whole(name).float()
    if not bool(torch.isfinite(values).all()):
        raise not_finite(adapter, name)
    return values


def not_finite(adapter: StoredWeights, name: str) -> MergeError:
    """A tensor with NaN or infinity in it."""
    return MergeError(
        f"{adapter.tensors[name].file}: {name} contains NaN or infinity: training had diverged before the "
        "adapter was saved."
    )


@dataclass
class Update:
    """All that happens to one tensor of the base, in order."""

    shape: tuple[int, ...]
    """In the merged model: tokens may have been added."""
    operations: list[Operation]

    def ready(self) -> WeightChange:
        """The changes, one after the other."""
        changes = [operation.ready() for operation in self.operations]

        def change(rows: torch.Tensor, start: int) -> torch.Tensor:
            for each in changes:
                rows = each(rows, start)
            return rows

        return change

    @property
    def is_plain_lora(self) -> bool:
        """Whether all of it can be computed beside the base's output: W x + scale B (A x)."""
        return all(
            isinstance(op, LowRank) and op.magnitude is None and not op.embedding for op in self.operations
        )

    @property
    def replaced(self) -> bool:
        """Whether nothing of the base is left."""
        return isinstance(self.operations[0], Replaced)


PART = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>"
    r"lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|trainable_tokens_delta|trainable_tokens_original|weight|bias)"
)
INNER = re.compile(r"\.(default|base_layer|modules_to_save|token_adapter)(?=\.|$)")
"""Parts of names by which peft tells its wrappers apart: the file of one adapter needs none of them."""
UNTRAINED = re.compile(r"\.original_module\.")
"""What a module that was trained as a whole was before, which peft saves too where the vocabulary grew."""


def parts_of(adapter: StoredWeights) -> dict[str, dict[str, str]]:
    """Module -> part -> name in the file. Raises MergeError for names that mean nothing here, or one thing in
    two ways."""
    found: dict[str, dict[str, str]] = {}
    strange = []
    for name in adapter.names():
        if UNTRAINED.search(name):
            continue
        plain = INNER.sub("", name)
        if plain.endswith("lora_magnitude_vector.weight"):
            plain = plain.removesuffix(".weight")
        match = PART.fullmatch(plain)
        if match is None:
            strange.append(name)
            continue
        there = found.setdefault(match["module"], {}).setdefault(match["part"], name)
        # Where the vocabulary grew, peft saves a module that was trained as a whole under two names.
        if there != name and hash_of(adapter, there) != hash_of(adapter, name):
            strange.append(name)
    if strange:
        raise MergeError(
            f"{adapter.tensors[strange[0]].file} holds {len(strange)} tensors of unknown meaning, the first "
            f"{strange[0]}: a merge that left them out would not be the adapter's model."
        )
    return found


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """LoRA's scale for a module: alpha / rank, or alpha / sqrt(rank) with rsLoRA; patterns by peft's rule.

    Raises MergeError where the config has another rank than the file.
    """
    said = _by_pattern(config["rank_pattern"], module, config["r"])
    alpha = _by_pattern(config["alpha_pattern"], module, config["lora_alpha"])
    if said != rank:
        raise MergeError(
            f"adapter_config.json says that {module} has rank {said}, and its weights have rank {rank}."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, float] | None, module: str, otherwise: float) -> float:
    """peft's rule: the first pattern that is the module's name, or its end after a dot, as a regular
    expression."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return otherwise

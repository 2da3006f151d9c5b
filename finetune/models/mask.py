"""The mask of a pruned base: which weights of its linear layers are kept. The others are 0, and stay so.

It lies beside the weights as mask.npz: for each pruned tensor, by its stored name, one bit a weight (1:
kept), the bits of a row filled up to whole bytes. Not as safetensors: vLLM, for one, loads every such file of
a folder as weights. Shapes: a weight has N outputs and M inputs.
"""

import zipfile
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from finetune.errors import ModelError, library_refusals
from finetune.models.bases.folder import MASK

ENTRY = ".npy"
"""Behind each name in the file."""


@dataclass(frozen=True)
class Mask:
    """The mask in a folder. Its bits are read when they are asked for, tensor by tensor."""

    path: Path
    names: frozenset[str]
    """The tensors that are pruned, as the base's files name them."""

    @classmethod
    def of_folder(cls, folder: Path) -> "Mask | None":
        """None where the folder has none. Raises ModelError where it is damaged."""
        path = folder / MASK
        if not path.is_file():
            return None
        with _reading(path), zipfile.ZipFile(path) as file:
            return cls(path, frozenset(name.removesuffix(ENTRY) for name in file.namelist()))

    def refuse_others(self, held: Container[str]) -> None:
        """Raises ModelError where it has tensors that aren't among those of the weights beside it: their
        updates would not be masked."""
        strange = sorted(name for name in self.names if name not in held)
        if strange:
            raise ModelError(
                f"{self.path} is not the mask of the weights beside it: it has {strange[0]}, which they lack "
                f"({len(strange)} of {len(self.names)}). Prune the base again."
            )

    def kept(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Which of a tensor's weights are kept (N x M, bool). Raises ModelError where the mask is damaged, or
        of another shape."""
        rows, columns = shape
        with (
            _reading(self.path),
            np.load(self.path, allow_pickle=False) as file,
        ):  # anew: threads read at once
            packed = file[name]
        if packed.dtype != np.uint8 or packed.shape != (rows, -(-columns // 8)):
            raise ModelError(
                f"{self.path} is not the mask of the weights beside it: it has {packed.dtype} of shape "
                f"{packed.shape} for {name}, whose shape is {shape}."
            )
        return torch.from_numpy(np.unpackbits(packed, axis=1, count=columns)).bool()


def _reading(path: Path) -> AbstractContextManager[None]:
    """Whatever zip's and numpy's readers raise of a damaged file."""
    return library_refusals(f"{path} is damaged: fetch it, or prune, again", ModelError)


def packed_bits(kept: torch.Tensor) -> np.ndarray:
    """A tensor's mask (N x M, bool) as it is stored."""
    return np.packbits(kept.numpy(), axis=1)


def write_mask(folder: Path, packed: Mapping[str, np.ndarray]) -> None:
    """Write mask.npz, of each pruned tensor's bits. Raises OSError where the disk is full."""
    np.savez(folder / MASK, allow_pickle=False, **packed)


def hold_mask(model: nn.Module, mask: Mask) -> None:
    """Let a base know its mask, for adapters that come on top; by itself it needs none.

    Raises ModelError where the mask is another model's.
    """
    names = [name for name, _ in model.named_parameters()]
    mask.refuse_others({*names, *(name.removeprefix("model.") for name in names)})
    model.pruning_mask = mask  # type: ignore[assignment]


def mask_held_by(model: nn.Module) -> Mask | None:
    """The mask of a base that has one."""
    return cast("Mask | None", getattr(model, "pruning_mask", None))


def kept_of(layer: nn.Module) -> torch.Tensor | None:
    """Which weights of a base's layer are kept (N x M, bool), where an adapter on it is masked; else None."""
    return cast("torch.Tensor | None", getattr(layer, "kept", None))


def take_mask(layer: nn.Module, mask: Mask, name: str) -> None:
    """Let a layer hold its part of a mask: kept_of.

    Raises ModelError where a weight that the mask prunes is not 0.
    """
    weight = cast(torch.Tensor, layer.weight)
    kept = mask.kept(name, tuple(weight.shape)).to(weight.device)
    if bool((weight != 0).logical_and_(~kept).any()):
        raise ModelError(
            f"{mask.path} is not the mask of the weights beside it: {name} has numbers where it is pruned. "
            "Prune the base again."
        )
    layer.kept = kept  # no buffer: it is in no checkpoint, and DDP need not send it round

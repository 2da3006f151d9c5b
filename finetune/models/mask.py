"""The mask of a pruned base: which weights of its linear layers are kept. The others are 0, and stay so.

It lies beside the weights as mask.npz: for each pruned tensor, by its stored name, one bit a weight (1:
kept), the bits of a row filled up to whole bytes. Not as safetensors: vLLM, for one, loads every such file of
a folder as weights. Shapes: a weight has N outputs and M inputs.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from finetune.errors import ModelError
from finetune.models.bases.folder import MASK
from finetune.models.bases.shapes import stored_name

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
        try:
            with zipfile.ZipFile(path) as file:
                return cls(path, frozenset(name.removesuffix(ENTRY) for name in file.namelist()))
        except (OSError, zipfile.BadZipFile) as error:
            raise _damaged(path, error) from None

    def kept(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Which of a tensor's weights are kept (N x M, bool). Raises ModelError where the mask is damaged, or
        of another shape."""
        rows, columns = shape
        try:
            with np.load(self.path, allow_pickle=False) as file:  # opened anew: threads read at once
                packed = file[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _damaged(self.path, error) from None
        if packed.dtype != np.uint8 or packed.shape != (rows, -(-columns // 8)):
            raise ModelError(
                f"{self.path} is not the mask of the weights beside it: it has {packed.dtype} of shape "
                f"{packed.shape} for {name}, whose shape is {shape}."
            )
        return torch.from_numpy(np.unpackbits(packed, axis=1, count=columns)).bool()


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is damaged ({type(error).__name__}: {error}): fetch it, or prune, again.")


def packed_bits(kept: torch.Tensor) -> np.ndarray:
    """A tensor's mask (N x M, bool) as it is stored."""
    return np.packbits(kept.numpy(), axis=1)


def write_mask(folder: Path, packed: Mapping[str, np.ndarray]) -> None:
    """Write mask.npz, of each pruned tensor's bits. Raises OSError where the disk is full."""
    np.savez(folder / MASK, allow_pickle=False, **packed)


def put_mask(model: nn.Module, mask: Mask) -> None:
    """Tell a base's linear layers which of their weights are kept, for the adapters that come on top.

    Raises ModelError where a weight that the mask prunes is not 0.
    """
    for path, module in model.named_modules():
        name = stored_name(mask.names, f"{path}.weight")
        if name is None:
            continue
        weight = cast(torch.Tensor, module.weight)
        kept = mask.kept(name, tuple(weight.shape)).to(weight.device)
        if bool(weight.masked_fill(kept, 0).any()):
            raise ModelError(
                f"{mask.path} is not the mask of the weights beside it: {name} has numbers where it is "
                "pruned. Prune the base again."
            )
        module.kept = kept  # no buffer: it is in no checkpoint, and DDP need not send it round


def kept_of(layer: nn.Module) -> torch.Tensor | None:
    """Which weights of a base's layer are kept (N x M, bool); None where it isn't pruned."""
    return cast("torch.Tensor | None", getattr(layer, "kept", None))

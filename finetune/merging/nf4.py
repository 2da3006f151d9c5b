"""The base as QLoRA saw it: NF4, its scales quantised too or not, dequantised. Dettmers et al. 2023, arXiv:2305.14314."""

from collections.abc import Iterator, Sequence

import torch

from finetune.merging.adapted import EMBEDDING
from finetune.merging.heads import LM_HEAD, SCORE_WEIGHT
from finetune.merging.tensors import StoredWeights, ranges
from finetune.models.stored_quantization import NF4_DOUBLE


class Nf4Weights:
    """A base's weights, its linear layers but its head rounded to NF4 and back by bitsandbytes; one tensor at a time."""

    def __init__(self, base: StoredWeights, quantization: str):
        """`quantization` is nf4 or nf4-double."""
        self.base, self.doubly = base, quantization == NF4_DOUBLE

    def names(self) -> Sequence[str]:
        """The base's tensors."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type in the base."""
        return self.base.dtype(name)

    def is_rounded(self, name: str) -> bool:
        """Whether transformers quantises this tensor: those of linear layers, the head aside."""
        outer = (f"{EMBEDDING}.weight", f"{EMBEDDING.removeprefix('model.')}.weight", f"{LM_HEAD}.weight", SCORE_WEIGHT)
        return len(self.shape(name)) == 2 and name not in outer

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor, in float32 where it was rounded: absmax is quantised over the whole tensor."""
        if not self.is_rounded(name):
            yield from self.base.blocks(name)
            return
        whole = self._rounded(name)
        for first, last in ranges(whole.shape):
            yield first, whole[first:last].clone()

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor."""
        return self._rounded(name)[first:last] if self.is_rounded(name) else self.base.rows(name, first, last)

    def _rounded(self, name: str) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(self.base.whole(name).float(), quant_type="nf4", compress_statistics=self.doubly)
        return dequantize_4bit(packed, state)

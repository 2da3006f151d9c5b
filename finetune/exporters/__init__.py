"""The formats that complete weights are written in, a file each.

To add one is to write its file and name it here.
"""

from finetune.exporters.base import Exporter, Written
from finetune.exporters.compressed.exporter import COMPRESSED, Compressed
from finetune.exporters.gguf.exporter import GGUF, Gguf
from finetune.exporters.nf4 import NF4, Nf4
from finetune.exporters.safetensors import SAFETENSORS, Safetensors

EXPORTERS: tuple[Exporter, ...] = (SAFETENSORS, GGUF, COMPRESSED, NF4)

__all__ = [
    "COMPRESSED", "EXPORTERS", "GGUF", "NF4", "SAFETENSORS",
    "Compressed", "Exporter", "Gguf", "Nf4", "Safetensors", "Written",
]  # fmt: skip

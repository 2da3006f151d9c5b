"""The formats that complete weights are written in, a file each.

To add one is to write its file and name it here.
"""

from finetune.exporters.base import Exporter, Written
from finetune.exporters.gguf.exporter import GGUF, Gguf
from finetune.exporters.safetensors import SAFETENSORS, Safetensors

EXPORTERS: tuple[Exporter, ...] = (SAFETENSORS, GGUF)

__all__ = ["EXPORTERS", "GGUF", "SAFETENSORS", "Exporter", "Gguf", "Safetensors", "Written"]

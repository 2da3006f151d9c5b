"""The formats that complete weights are written in, a file each.

To add one is to write its file and name it here.
"""

from finetune.export.base import Exporter, Written
from finetune.export.safetensors import SAFETENSORS, Safetensors

EXPORTERS: tuple[Exporter, ...] = (SAFETENSORS,)

__all__ = ["EXPORTERS", "SAFETENSORS", "Exporter", "Safetensors", "Written"]

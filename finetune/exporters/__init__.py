"""The formats that complete weights are written in, a file each.

To add one is to write its file and name it here.
"""

from finetune.exporters.base import Exporter, Written
from finetune.exporters.safetensors import SAFETENSORS, Safetensors

EXPORTERS: tuple[Exporter, ...] = (SAFETENSORS,)

__all__ = ["EXPORTERS", "SAFETENSORS", "Exporter", "Safetensors", "Written"]

"""The formats that complete weights are written in, a file each.

To add one is to write its file and name it here.
"""

from finetune.export.base import Exporter, Written
from finetune.export.safetensors import Safetensors

EXPORTERS: tuple[Exporter, ...] = (Safetensors(),)

__all__ = ["EXPORTERS", "Exporter", "Safetensors", "Written"]

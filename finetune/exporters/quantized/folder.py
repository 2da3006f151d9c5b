"""Folders of quantised weights that transformers loads: what their formats have in common."""

import json
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from finetune.exporters.base import Description, Exporter, Written
from finetune.exporters.quantized.weights import QuantizedWeights
from finetune.exporters.safetensors import SAFETENSORS, write_weights
from finetune.models.description import CONFIG
from finetune.models.description_check import differences
from finetune.models.safetensors import Weights

LARGEST_FILE = 2_000_000_000
"""Bytes of tensors in a file."""
KEY = "quantization_config"


class QuantizedFolder(Exporter):
    """A format of them. config.json says in quantization_config how the weights are stored."""

    @property
    @abstractmethod
    def type(self) -> str:
        """What a person calls the numbers."""

    @abstractmethod
    def plan(self, weights: Weights, exact: Weights, description: Description) -> QuantizedWeights:
        """The folder's tensors, nothing of them computed yet.

        `weights` are the model's as they would be stored unquantised, `exact` the same in float32. Raises
        ExportError where the format can't hold the model, and FinetuneError without its library.
        """

    @abstractmethod
    def quantization_config(self, description: Description) -> dict[str, Any]:
        """What config.json says."""

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the format."""

    def in_float32(self, model: PreTrainedModel) -> None:
        """Let a model that transformers loaded in float32 compute so, where its folder names another type."""

    def write(self, weights: Weights, description: Description, folder: Path, *, workers: int) -> Written:
        """See Exporter."""
        return self.write_plan(self.plan(weights, weights, description), description, folder, workers)

    def write_plan(
        self, plan: QuantizedWeights, description: Description, folder: Path, workers: int
    ) -> Written:
        """Write what is planned, by so many threads."""
        SAFETENSORS.describe(description, folder)
        config = json.loads((folder / CONFIG).read_text())
        config[KEY] = self.quantization_config(description)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        return write_weights(plan, folder, LARGEST_FILE, workers)

    def check(self, description: Description, folder: Path) -> list[str]:
        """Read config, tokenizer and end of turn back by plain transformers, and compare them with those that
        were trained."""
        expected: Any = description.config.expected()
        expected.quantization_config = self.quantization_config(description)
        return differences(folder, description.tokenizer, expected)


def size_of(plan: QuantizedWeights) -> int:
    """The bytes of a folder's tensors."""
    return sum(math.prod(plan.shape(name)) * plan.dtype(name).itemsize for name in plan.names())

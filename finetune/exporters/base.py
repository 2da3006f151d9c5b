"""What a format of complete weights is: how they are written, and how what was written is checked."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerFast

from finetune.models.description import ModelConfig
from finetune.models.safetensors import Weights


@dataclass(frozen=True)
class Description:
    """By what a model's weights are read."""

    config: ModelConfig
    tokenizer: PreTrainedTokenizerFast
    tokenizer_sources: Sequence[Path]
    """The folders that the tokenizer comes from."""
    generation: dict[str, Any] | None
    """The base's generation config; None for a model that writes no text."""
    name: str = "model"
    """What the model is called, for formats that hold a name."""
    base: str | None = None
    """The hub's id of the base that it comes from; None where it has none."""
    licence: str | None = None
    """Of the base, where its card names one."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    files: int
    bytes: int
    xxh3_128: dict[str, str]
    """Of each tensor's bytes."""
    notes: tuple[str, ...] = ()
    """What is to be said of the format."""


class Exporter(ABC):
    """A format, with its options as fields. It reads weights tensor by tensor, in blocks of rows (Weights):
    no model is ever held in memory for it."""

    name: ClassVar[str]

    @abstractmethod
    def write(self, weights: Weights, description: Description, folder: Path, *, workers: int) -> Written:
        """Write the model into an empty folder, by so many threads.

        All is on the disk on return. Raises MergeError or ExportError where a number is not finite,
        ExportError where the format can't hold the model, OSError where the disk is full.
        """

    @abstractmethod
    def check(self, description: Description, folder: Path) -> list[str]:
        """What a reader of the format finds otherwise than it is, in words; the numbers aside, which a merge
        compares itself."""

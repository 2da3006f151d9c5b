"""The model families there are. A new one is a file and a word in FAMILIES. Torch-free."""

from typing import Any

from finetune.models.architectures.base import ArchitectureSpec, last_part
from finetune.models.architectures.granite import GRANITE
from finetune.models.architectures.llama import LLAMA
from finetune.models.architectures.mistral import MISTRAL
from finetune.models.architectures.olmo2 import OLMO2
from finetune.models.architectures.phi3 import PHI3
from finetune.models.architectures.qwen2 import QWEN2
from finetune.models.architectures.qwen3 import QWEN3

FAMILIES: tuple[ArchitectureSpec, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GRANITE, OLMO2)
"""In the order of tables and messages."""


def family_of(model_type: Any) -> ArchitectureSpec | None:
    """The family that config.json's model_type names; None for one that isn't supported."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


def family_names() -> str:
    """For messages and the manual."""
    return ", ".join(family.model_type for family in FAMILIES)


def linear_layers() -> frozenset[str]:
    """The linear layers of any family, by the last part of their names."""
    return frozenset(name for family in FAMILIES for name in family.linear_layers)


__all__ = [
    "FAMILIES",
    "ArchitectureSpec",
    "family_names",
    "family_of",
    "last_part",
    "linear_layers",
]

"""Whether what a merge wrote beside the weights says what was trained."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from finetune.exporters import SAFETENSORS
from finetune.merging.inputs import MergeInputs
from finetune.models.bases.folder import MASK
from finetune.models.description import ModelConfig

DESCRIBING = (
    "*.jinja",
    "*.model",
    "*_config.json",
    "added_tokens.json",
    "config.json",
    MASK,
    "special_tokens_map.json",
    "tokenizer.json",
)
"""Files by which a model is read, its weights aside."""


@dataclass(frozen=True)
class DescriptionCheck:
    """What stands beside the weights."""

    files: dict[str, str]
    """Name -> SHA-256."""
    failures: tuple[str, ...]
    """What plain transformers reads otherwise than it was trained, in words."""


def check_beside(
    parts: MergeInputs, folder: Path, config: ModelConfig, *, for_version_4: bool = True
) -> DescriptionCheck:
    """Read back by the format's own check, and compared with what was trained."""
    found = SAFETENSORS.check(parts.description(config), folder, for_version_4=for_version_4)
    return DescriptionCheck(hashes_beside(folder), tuple(found))


def hashes_beside(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that describes the model in a folder."""
    files = sorted({path for pattern in DESCRIBING for path in folder.rglob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

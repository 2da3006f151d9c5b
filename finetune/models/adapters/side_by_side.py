"""Which adapters peft can have side by side in one model: those that change a module change it alike."""

import re
from collections.abc import Mapping
from pathlib import Path

from finetune.models.adapters.config_file import LORA, TOKEN_ROWS
from finetune.models.bases.folder import ADAPTER_WEIGHTS, read_adapter_config, read_header

LORA_PART = re.compile(r"\.lora_\w+(\.weight)?$")
"""How peft names the matrices of LoRA, and DoRA's magnitudes."""
ROWS = "by rows of tokens"

Changes = Mapping[str, str]
"""Module -> how it is changed."""


def changes_of(folder: Path) -> Changes:
    """What an adapter changes. Raises ModelError for a damaged one."""
    whole = sorted(read_adapter_config(folder).get("modules_to_save") or ())
    found = {}
    for name in read_header(folder / ADAPTER_WEIGHTS):
        if LORA_PART.search(name):
            found[LORA_PART.sub("", name)] = LORA
        elif (rows := TOKEN_ROWS.search(name)) is not None:
            found[name[: rows.end("module")]] = ROWS
        else:  # which part of the model peft wraps for it is what the list says
            found[name.rpartition(".")[0]] = f"as a whole, in {whole}"
    return found


def go_together(one: Changes, other: Changes) -> bool:
    """Whether one model can have both adapters."""
    if ROWS in one.values() and ROWS in other.values():
        return False
    return all(other.get(module, way) == way for module, way in one.items())


def comes_last(changes: Changes) -> bool:
    """Whether peft takes no adapter behind this one."""
    return ROWS in changes.values()

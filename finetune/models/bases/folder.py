"""What lies in a model's folder, read once for every verb: config.json, which files are the weights, and
their headers.

Loads no torch. Weights are those that transformers takes, in its order: model.safetensors, else the shards
that model.safetensors.index.json names. Whatever else lies there (an adapter, shards of an earlier save, a
second layout) is no part of the model: it isn't loaded, hashed, merged or counted.
"""

import json
import math
import os
import shlex
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.disk import read_regular
from data_prep.files import is_git_lfs_pointer
from data_prep.temporary import temporary_folder
from data_prep.text import shown
from finetune.errors import ModelError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
MASK = "mask.npz"
"""Of a pruned base: which of its weights are kept (finetune.models.mask)."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHECKPOINT_MARKER = "complete.json"
"""In a training checkpoint of this toolkit, written last."""
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
PICKLED_ADAPTER = "adapter_model.bin"

LARGEST_JSON_BYTES = 200_000_000
"""Of a config or an index: the index of the largest models has a few MB."""

LARGEST_HEADER_BYTES = 100_000_000
"""safetensors' own limit; a larger number means that the file is something else."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64,
    "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""The types that safetensors knows, and the bits of a number."""

Header = dict[str, dict[str, Any]]
"""Tensor's name -> {dtype, shape, data_offsets}."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model's or an adapter's folder that holds an object.

    Raises FileNotFoundError where it is absent, and ModelError where it can't be read, isn't JSON, or holds
    something else.
    """
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise ModelError(
                f"{path} is {path.stat().st_size:,} bytes long; expected at most {LARGEST_JSON_BYTES:,}."
            )
        refuse_git_lfs_pointer(path)
        values = json.loads(read_regular(path, LARGEST_JSON_BYTES))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds a {type(values).__name__}; expected an object.")
    return values


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelError where it is absent or isn't a JSON object."""
    try:
        return read_json(folder / CONFIG)
    except FileNotFoundError:
        expected = _adapter_in(folder) or "expected a model folder as transformers saves one."
        raise ModelError(f"{folder} holds no {CONFIG}: {expected}") from None


def _adapter_in(folder: Path) -> str:
    """What to do where a base was asked for, and the folder holds an adapter without its base; empty where it
    holds none."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return ""
    command = shlex.join(["finetune", "merge", str(folder)])
    return (
        f"it is an adapter, which is no base by itself. Merge it ({command} --output DIR), and name DIR in "
        "its place."
    )


def refuse_git_lfs_pointer(path: Path) -> None:
    """Raises ModelError where a file is the pointer that git checks out when Git LFS didn't fetch the
    content."""
    if is_git_lfs_pointer(path):
        raise ModelError(
            f"{path} is a Git LFS pointer, not the file itself, which was never fetched: run `git lfs pull` "
            "in its repository, or download the file again."
        )


def holds_whole_weights(folder: Path) -> bool:
    """Whether a folder holds all of a model's weights under a name that transformers loads, pickled ones
    included."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX, *PICKLED))


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter. Where whole weights lie beside it, the folder is the model without the
    adapter."""
    return (folder / ADAPTER_CONFIG).is_file() and not (
        (folder / CONFIG).is_file() and holds_whole_weights(folder)
    )


def weight_files(folder: Path, *, fetched: bool = True) -> list[Path]:
    """The safetensors files that are the model's weights; none where the folder holds none of a name that is
    loaded.

    Of a model that wasn't `fetched`, none where one is absent. Raises ModelError where the index is damaged,
    or names a file that is absent or outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    files = [folder / name for name in sorted(set(read_index(folder).values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent and fetched:
        raise ModelError(
            f"{folder} lacks {absent[0]}, which its {INDEX} names ({len(absent)} absent): fetch the base "
            "again."
        )
    return [] if absent else files


def read_index(folder: Path) -> dict[str, str]:
    """Tensor's name -> file's name, of a folder whose weights are in shards. Raises ModelError where it is
    damaged."""
    path = folder / INDEX
    index = read_json(path)
    named = index.get("weight_map")
    if not isinstance(index.get("metadata"), dict):
        held = shown(index.get("metadata"))
        raise ModelError(f"{path} is damaged: metadata is {held}; expected an object with total_size.")
    if not isinstance(named, dict) or not named:
        raise ModelError(
            f"{path} is damaged: weight_map is {shown(named)}; expected tensors' names, each with its file."
        )
    for tensor, file in named.items():
        if (
            not isinstance(file, str)
            or file != os.path.basename(file)
            or file in ("", ".", "..")
            or "\\" in file
        ):
            wrong = shown(file)
            raise ModelError(
                f"{path} gives {tensor} the file {wrong}; expected the name of a file in the same folder."
            )
    return named


def refuse_no_weights(folder: Path) -> None:
    """Raises ModelError, with the cause, where a folder holds no weights that can be loaded."""
    if weight_files(folder):
        return
    found = f"{folder} holds no {WEIGHTS}"
    shards = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
    if shards:
        raise ModelError(
            f"{found}, and of its shards ({shards[0]} ...) there is no {INDEX}, which says what lies where: "
            "fetch that file as well."
        )
    if any((folder / name).is_file() for name in PICKLED):
        raise ModelError(
            f"{found}: its weights are pickled "
            f"({', '.join(name for name in PICKLED if (folder / name).is_file())}), which are "
            'not loaded, as a pickle can run code. If you trust them, convert them: python -c "from '
            f"transformers import AutoModelForCausalLM as M; M.from_pretrained({str(folder)!r}, "
            "dtype='auto').save_pretrained('CONVERTED')\", and copy the tokenizer's files there."
        )
    if any(folder.glob("*.distcp")) or any(folder.glob("*/*.distcp")):
        raise ModelError(f"{found}, but a distributed checkpoint (.distcp): save the model whole first.")
    if adapter := _adapter_in(folder):
        raise ModelError(f"{found}: {adapter}")
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    beside = f"; {', '.join(others[:3])} is no name that transformers loads" if others else ""
    raise ModelError(
        f"{found} and no {INDEX}: expected the base's weights as transformers saves them{beside}."
    )


@contextmanager
def only_the_model(folder: Path) -> Iterator[Path]:
    """A folder of links to config and weights alone, while it lasts: what transformers is given to load.

    From the folder itself it would also take an adapter that lies there, files that config.json names, and
    code.
    """
    with temporary_folder("finetune-model-") as view:
        names = [name for name in (CONFIG, INDEX, GENERATION_CONFIG) if (folder / name).is_file()]
        for path in (*(folder / name for name in names), *weight_files(folder)):
            (view / path.name).symlink_to(path.absolute())
        yield view


def read_header(path: Path) -> Header:
    """The header of one safetensors file, checked against the file. Raises ModelError where it is damaged or
    truncated."""
    try:
        refuse_git_lfs_pointer(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER_BYTES:
                raise ModelError(f"{path} is no safetensors file: its header would be {length:,} bytes long.")
            header = json.loads(file.read(length))
    except (struct.error, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file: {error}") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path} is no safetensors file: its header is a {type(header).__name__}.")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path} is damaged: its __metadata__ is {shown(metadata)}; expected texts by name.")
    _check_places(path, header, size - 8 - length)
    return header


def _check_places(path: Path, header: Header, held: int) -> None:
    """Raises ModelError unless the tensors fill the file's `held` bytes, one after the other, each with its
    own length."""
    for name, entry in header.items():
        if not _is_entry(entry):
            raise ModelError(
                f"{path} is damaged: its header says {shown(entry)} of {name}, and no type, shape and place."
            )
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        bits = math.prod(entry["shape"]) * BITS[entry["dtype"]]
        if start != end or (stop - start) * 8 != bits:
            raise ModelError(f"{path} is damaged: the bytes of {name} are not where its header says.")
        end = stop
    if end != held:
        what = "truncated" if held < end else "damaged"
        raise ModelError(f"{path} is {what}: {end:,} bytes of tensors were expected, got {held:,}.")


def _is_entry(entry: Any) -> bool:
    """Whether a header's entry is what the format asks for."""
    if not isinstance(entry, dict):
        return False
    lists = [entry.get("shape"), entry.get("data_offsets")]
    whole = all(
        isinstance(found, list) and all(type(item) is int and item >= 0 for item in found) for found in lists
    )
    return (
        whole
        and len(entry["data_offsets"]) == 2
        and isinstance(entry.get("dtype"), str)
        and entry["dtype"] in BITS
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter folder's adapter_config.json. Raises ModelError where the folder holds no adapter, or a
    damaged one."""
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} is not an adapter folder: {_why_no_adapter(folder)}.")
    config = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(kind := config.get("peft_type"), str):
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: peft_type is {shown(kind)}; expected peft's name of a kind, as LORA."
        )
    return config


def _why_no_adapter(folder: Path) -> str:
    pickled = folder / PICKLED_ADAPTER
    if (folder / ADAPTER_CONFIG).is_file() and pickled.is_file():
        program = (
            "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in "
            f"torch.load({str(pickled)!r}, map_location='cpu', weights_only=True).items()}}, "
            f"{str(folder / ADAPTER_WEIGHTS)!r})"
        )
        return (
            f"its weights are pickled ({PICKLED_ADAPTER}), which are not loaded; convert them once: python "
            f'-c "{program}"'
        )
    return f"expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} in it"

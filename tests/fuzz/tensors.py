"""Changes of a safetensors file: its header, where the header says that bytes are, and the numbers."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.values import Raw, change_anywhere, dumps, junk, shown

DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "f32",
    "float32",
    "F33",
    "",
    "E8M0",
]
SIZES = [0, 1, -1, 2, 3, 2**31, 2**60, 2**63, 2**64, 10**30, 1.0, "1", None, True]


def change_tensors(random: Random, path: Path) -> str:
    """One change of a safetensors file that can still be written; what was done, in words."""
    content = path.read_bytes() if path.is_file() else b""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        names = [name for name, entry in header.items() if isinstance(entry, dict) and "shape" in entry]
    except (struct.error, ValueError, AttributeError, RecursionError):  # damaged by the change before
        names = []
    if not names:
        path.write_bytes(content + b"\0")
        return "a byte more"
    data = content[8 + length :]
    kind = random.choice(
        ["length", "numbers", "header", "entry", "entry", "entry", "names", "names", "shape", "metadata"]
    )
    if kind == "length":
        length = random.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(content)])
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        return f"its header would be {length:,} bytes long"
    if kind == "numbers":
        return _change_numbers(random, path, content, 8 + length)
    said = {
        "header": change_anywhere,
        "entry": _change_entry,
        "names": _change_names,
        "shape": _change_shape,
    }.get(kind, _change_metadata)(random, header)
    text = dumps(header).encode("utf-8", errors="surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return said


def _change_numbers(random: Random, path: Path, content: bytes, start: int) -> str:
    filler = random.choice(
        [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x00\x00", b"\xff\xff\x7f\x7f", b"\xff"]
    )
    first = random.choice([start, random.randrange(start, len(content) + 1)])
    count = random.choice([4, 400, len(content)])
    torn = content[:first] + (filler * count)[: len(content) - first][:count] + content[first + count :]
    path.write_bytes(torn[: len(content)])
    return f"numbers from byte {first:,} are {filler.hex()}"


def _tensor(random: Random, header: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name = random.choice(
        [name for name, entry in header.items() if isinstance(entry, dict) and "shape" in entry]
    )
    return name, header[name]


def _change_entry(random: Random, header: dict[str, Any]) -> str:
    name, entry = _tensor(random, header)
    key = random.choice(["dtype", "shape", "data_offsets", "data_offsets"])
    if key == "dtype":
        entry[key] = random.choice([*DTYPES, junk(random)])
    else:
        entry[key] = [*entry[key]] if isinstance(entry.get(key), list) else []
        place = random.randrange(len(entry[key]) + 1)
        entry[key][place : place + 1] = [random.choice([*SIZES, *SIZES, 8, 64, 4096])]
        if random.random() < 0.1:
            entry[key] = junk(random)
    return f"{name}.{key} = {shown(entry[key])}"


def _change_shape(random: Random, header: dict[str, Any]) -> str:
    """Another shape of as many numbers, or two tensors' bytes exchanged: a header that holds, of another
    model."""
    name, entry = _tensor(random, header)
    other, theirs = _tensor(random, header)
    if random.random() < 0.5:
        entry["data_offsets"], theirs["data_offsets"] = theirs["data_offsets"], entry["data_offsets"]
        return f"{name} and {other} have each other's bytes"
    shape = entry["shape"]
    entry["shape"] = random.choice(
        [shape[::-1], [*shape, 1], [1, *shape], [0, *shape], [*shape, 2**60, 0], []]
    )
    return f"{name}.shape = {entry['shape']}"


def _change_names(random: Random, header: dict[str, Any]) -> str:
    name, entry = _tensor(random, header)
    other, theirs = _tensor(random, header)
    match random.choice(["rename", "rename", "exchange", "remove", "copy", "twice"]):
        case "rename":
            parts = name.split(".")
            place = random.randrange(len(parts))
            parts[place] = random.choice(
                ["", "x", "99", "é", "a" * 5000, "base_layer", "lora_A", "0.0", "\n"]
            )
            new = random.choice(
                [
                    ".".join(parts),
                    name.upper(),
                    f"model.{name}",
                    name.partition(".")[2],
                    "a\0b",
                    f"{name}.weight",
                ]
            )
            header[new] = header.pop(name)
            return f"{name} is called {new[:80]!r}"
        case "exchange":
            header[name], header[other] = theirs, entry
            return f"{name} and {other} exchanged"
        case "remove":
            del header[name]
            return f"{name} removed"
        case "copy":
            header[f"{name}.copy"] = entry
            return f"{name} also as {name}.copy"
        case _:
            header[name] = Raw(f"{dumps(entry)}, {json.dumps(name)}: {dumps(theirs)}")
            return f"{name} twice"


def _change_metadata(random: Random, header: dict[str, Any]) -> str:
    header["__metadata__"] = random.choice(
        [junk(random), {"format": junk(random)}, {"format": random.choice(["tf", "flax", "np", "mlx", ""])}]
    )
    return f"__metadata__ = {shown(header['__metadata__'])}"

"""The files that wandb writes."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (32 KiB blocks; CRC, length and type before each
    part)."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_history(path: Path) -> dict[str, float]:
    """Every logged value of a .wandb file, by name."""
    from wandb.proto import wandb_internal_pb2

    values = {}
    for data in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return values

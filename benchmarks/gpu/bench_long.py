"""One step of QLoRA r 32 on one long row, one length a call: what bench_gpu.py's ladder has no time for.

    make bench-gpu-long JSON=long.json              # once for each length, until it says that all are there
    python -m benchmarks.gpu.bench_long --json long.json --base FOLDER

The shape is Llama 3.1 8B's, with random weights, which --base keeps for the next call. Layers are recomputed,
what goes into them waits in pinned memory of the host, MLPs are computed in tiles. A length that the file has
is not measured again, and after one that ended out of memory none is. By the model a step of 343,000 tokens
takes eight minutes on an H100.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench_gpu import machine, memory_of, write_whole
from benchmarks.gpu.models import SHAPES, Setting, optimizer_of, ours, pack, seconds_of, take_step, write_base
from finetune.errors import ModelError
from finetune.models.device import is_out_of_memory

LENGTHS = {"8b": (98_304, 131_072, 196_608, 262_144, 343_000, 439_296), "tiny": (128, 256, 320)}
"""The last but one is what Unsloth says of 80 GB, the last what `finetune plan` says of ours."""
WARM_UP = {"8b": 4096, "tiny": 64}
"""Tokens of a first step, which compiles the kernels."""


def main() -> None:
    """The next length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="what was measured, and will be")
    parser.add_argument("--base", type=Path, help="where the base is, or is made and stays")
    parser.add_argument("--shape", choices=list(LENGTHS), default="8b")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench-gpu-long needs an NVIDIA GPU, and torch finds none.")
    found: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    length = upcoming(found, asked.shape)
    if length is None:
        print(f"{asked.json} has every length:")
    else:
        found |= {"machine": machine(torch.device(asked.device)), str(length): measured(asked, length)}
        write_whole(asked.json, found)
    for name, values in found.items():
        print(f"{name:10} {values}")


def upcoming(found: dict[str, Any], shape: str) -> int | None:
    """The shortest length that wasn't measured; None where none is left."""
    if any("ends" in values for values in found.values()):
        return None
    return next((length for length in LENGTHS[shape] if str(length) not in found), None)


def measured(asked: argparse.Namespace, length: int) -> dict[str, Any]:
    """Of one step of this length, after a short one."""
    device = torch.device(asked.device)
    with tempfile.TemporaryDirectory() as name:
        base = asked.base or Path(name)
        if not (base / "model.safetensors.index.json").exists():  # written last
            write_base(base, asked.shape, device)
        setting = Setting("qlora", rank=32, long=True)
        model = ours(base, setting, device)
        model.train()
        optimizer = optimizer_of(model)
        vocabulary = SHAPES[asked.shape]["vocab_size"]
        take_step(model, optimizer, pack([WARM_UP[asked.shape]], vocabulary, device), setting)
        batch = pack([length], vocabulary, device)
        try:
            seconds = seconds_of(
                lambda: take_step(model, optimizer, batch, setting), device, warm_up=0, steps=1
            )
        except ModelError as error:  # the host's
            return {"ends": str(error)}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return {"ends": "out of memory"}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"tokens/s": length / seconds, "seconds": seconds, "GB of the host": host} | memory_of(device)


if __name__ == "__main__":
    main()

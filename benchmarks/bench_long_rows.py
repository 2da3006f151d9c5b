"""Memory, seconds and loss of one row, with each thing that long rows have, beside what the plan predicts.

    python benchmarks/bench_long_rows.py --base FOLDER --tokens 8192

LoRA on every linear layer, on the CPU, one thread: forward and backward, a process each. Peak: resident
memory above what the process had before the row, blocks of a megabyte going back to the system when they are
freed. On the CPU the host's memory is the device's, so what was moved to the host is taken off the peak.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_prep.table.documents import Document
from finetune.cli.quiet import quiet_libraries
from finetune.models.adapters.adapter import attach
from finetune.models.bases.folder import read_config
from finetune.models.bases.locate import resolve_base
from finetune.models.bases.shapes import read_shape, trainable_shapes
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.models.kernels.install import install_fast_path
from finetune.models.load import load_model
from finetune.models.loss import install_loss, supervised_loss
from finetune.models.offloading import HostMemory
from finetune.models.recomputation import recompute_activations
from finetune.planning.job import Job
from finetune.planning.memory import memory_of
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection
from finetune.training.batches import batch_of

ROOT = Path(__file__).resolve().parents[1]
TILE = 1024
RANK = 16
CASES: dict[str, dict[str, Any]] = {
    "everything kept": {},
    "recomputed": {"checkpoint_every": 1},
    "recomputed, attention kept": {"checkpoint_every": 1, "keep_attention": True},
    "recomputed, offloaded": {"checkpoint_every": 1, "offload": True},
    f"recomputed, tiles of {TILE}": {"checkpoint_every": 1, "mlp_tile": TILE},
    f"recomputed, offloaded, tiles of {TILE}": {"checkpoint_every": 1, "offload": True, "mlp_tile": TILE},
    f"tiles of {TILE} alone": {"mlp_tile": TILE},
}


def main() -> None:
    """Each case, a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--measure", choices=list(CASES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        quiet_libraries()
        print(json.dumps(measure(asked)))
        return
    print(f"{'':38} {'plan':>9} {'peak':>9} {'off':>6} {'seconds':>8} {'loss':>12} {'host':>9}")
    for name in asked.cases:
        planned = memory_of(job_of_case(asked, name))
        passing = planned.activations + planned.logits + planned.gradients + planned.passing
        words = ["--base", str(asked.base), "--tokens", str(asked.tokens), "--precision", asked.precision]
        done = subprocess.run(
            [sys.executable, __file__, *words, "--measure", name],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"},
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        peak = found["peak"] - found["host"]
        print(
            f"{name:38} {passing / 1e9:6.2f} GB {peak / 1e9:6.2f} GB {passing / peak - 1:+6.0%} "
            f"{found['seconds']:8.1f} {found['loss']:12.8f} {found['host'] / 1e9:6.2f} GB",
            flush=True,
        )


def job_of_case(asked: argparse.Namespace, name: str) -> Job:
    """What the plan knows of it."""
    shape, adapter = read_shape(read_config(asked.base)), AdapterSection(rank=RANK)
    job = Job(
        shape=shape,
        method="lora",
        quantization=None,
        trained_shapes=tuple(trainable_shapes(shape, adapter)),
        rank=RANK,
        most_sharing=0,
        number_bytes=4 if asked.precision == "fp32" else 2,
        tokens=asked.tokens,
        supervised=asked.tokens,
        row_tokens=asked.tokens,
        packed=True,
    )
    return replace(job, **CASES[name])


def measure(asked: argparse.Namespace) -> dict[str, float]:
    """A short row to warm up, then the row."""
    case = CASES[asked.measure]
    half = asked.precision == "bf16"
    torch.manual_seed(0)
    model: Any = load_model(
        resolve_base(ModelSection(base=str(asked.base))),
        dtype=torch.bfloat16 if half else torch.float32,
        attention=PER_DOCUMENT,
    )
    model = attach(model, AdapterSection(rank=RANK))
    install_loss(model.base_model.model, supervised_loss)
    install_fast_path(model, mlp_tile_tokens=case.get("mlp_tile"))
    if case.get("checkpoint_every"):
        recompute_activations(
            model, keep_attention=case.get("keep_attention", False), offload=case.get("offload", False)
        )
    model.train()
    row(model, 64, half)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    loss = row(model, asked.tokens, half)
    seconds = time.perf_counter() - started
    return {
        "peak": resident("VmHWM") - before,
        "seconds": seconds,
        "loss": loss,
        "host": host_bytes(),
    }


def row(model: Any, tokens: int, half: bool) -> float:
    """Forward and backward of one document; its loss a token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40000, (tokens,), generator=generator).tolist()
    batch = batch_of([Document(ids, ((1, tokens, 1.0),), "row")], packed=True, pad_token_id=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(**batch, num_items_in_batch=tokens - 1).loss
    loss.backward()
    return float(loss.detach())


def host_bytes() -> int:
    """What the host holds of layer inputs."""
    found = [memory for memory in gc.get_objects() if isinstance(memory, HostMemory)]
    return sum(buffer.nbytes for memory in found for buffer in memory.free)


def resident(name: str) -> int:
    """Bytes, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()

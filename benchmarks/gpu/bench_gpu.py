"""What one GPU does, in one command: right numbers first, then tokens per second, memory, kernels and waits.

    make bench-gpu                                  # all parts, at most 9 minutes; needs nothing from outside
    python -m benchmarks.gpu.bench_gpu --parts numbers lora --json out.json
    python -m benchmarks.gpu.bench_gpu --shape tiny --device cpu    # that every part runs

Weights are random, of the shape of Llama 3.1 8B; rows are drawn. A wrong number ends the command with exit
code 1 before anything is timed. A part that time or memory doesn't suffice for says so, and the others go on.

numbers   losses and gradients of a small model on the GPU against the CPU's, in float32 (1e-4); fused kernels
          against plain arithmetic, and the attention of packs against one call for each document, in bf16;
          FP8's rounding (each bit) and products (1e-2)
gemm      the rate of bf16 products, by which the others are judged
lora      LoRA r 16, two rows of 4,096 tokens a step, dropout 0 and 0.1 (NeMo AutoModel's published setting)
packs     the same tokens in documents of the lengths that chats have
qlora     NF4, r 32
fp8       `lora` without dropout, the base in FP8 (compute capability 8.9 and above)
dpo       pairs of two answers of 512 tokens behind a prompt of 512
peft      transformers and peft as a short script has them, beside `lora`
peers     TRL, Liger and Unsloth, those that are installed (peers.py), beside `lora`
lengths   QLoRA r 32 with what long rows have (docs/training.md): 8,192 tokens, and twice as many each time,
          until memory ends; `make bench-gpu-long` goes on
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.models import (
    SHAPES,
    Setting,
    on_device,
    optimizer_of,
    ours,
    pack,
    plain_peft,
    seconds_of,
    take_step,
    wait,
    write_base,
)
from benchmarks.gpu.numbers import BOUNDS, distances, has_fp8
from finetune.errors import FinetuneError
from finetune.models.device import is_out_of_memory

ROW, ROWS, LONGEST = 4096, 2, 65_536
PEAKS = {
    "NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989, "NVIDIA B200": 2250,
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312, "NVIDIA L40S": 362, "NVIDIA GeForce RTX 4090": 165,
}  # fmt: skip
"""TFLOP/s of dense products in bf16, as NVIDIA's data sheets have them, by the card's whole name."""

COPIES = ("Memcpy", "Memset")
"""What a profile has beside kernels."""


@dataclass
class Bench:
    """The device, the base, what was measured, and the time that is left."""

    device: torch.device
    shape: str
    base: Path
    minutes: float
    started: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    """Where the results are as soon as they are there."""

    @property
    def row(self) -> int:
        """Tokens of a row: fewer where the shape is for a try."""
        return ROW if self.shape != "tiny" else 64

    @property
    def vocabulary(self) -> int:
        """Of the shape."""
        return int(SHAPES[self.shape]["vocab_size"])

    def operations(self, documents: list[int]) -> tuple[float, float]:
        """Of a step, by the two ways in which they are counted: 4 a weight and token, embedding included; and
        those that are made, 4 for each weight that multiplies, with attention's over the tokens before."""
        shape, tokens = SHAPES[self.shape], sum(documents)
        width, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
        keys = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
        layer = 2 * width * width + 2 * width * keys + 3 * width * inner
        head = width * shape["vocab_size"]
        # Two products forward and four backward, of which half is masked.
        attention = 6 * layers * width * sum(length**2 for length in documents)
        weights = layers * layer + head
        return 4.0 * tokens * (weights + head), 4.0 * tokens * weights + attention

    @property
    def peak(self) -> float | None:
        """The card's bf16 TFLOP/s by its data sheet; None where it is not known."""
        return PEAKS.get(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None

    def seconds_left(self) -> float:
        """Of the minutes."""
        return self.minutes * 60 - (time.monotonic() - self.started)

    def put(self, part: str, values: dict[str, Any]) -> None:
        """Keep what was measured, and print it."""
        self.results[part] = values
        if self.file is not None:
            write_whole(self.file, self.results)
        cells = (
            f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        )
        print(f"{part:14} {', '.join(cells)}", flush=True)


def numbers(bench: Bench) -> None:
    """Raises SystemExit where the device computes something else than the CPU."""
    apart = distances(bench.device)
    bench.put("numbers", apart)
    wrong = [name for name, value in apart.items() if not value <= BOUNDS[name]]
    if wrong:
        raise SystemExit(f"numbers: {', '.join(wrong)} beyond the bound; nothing is timed.")


def gemm(bench: Bench) -> None:
    """TFLOP/s of a square product."""
    size = 8192 if bench.shape != "tiny" else 256
    one, other = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = seconds_of(lambda: one @ other, bench.device, steps=20)
    bench.put("gemm", {"TFLOP/s": 2 * size**3 / seconds / 1e12})


def lora(bench: Bench) -> None:
    """Dropout 0 and 0.1."""
    for dropout in (0.0, 0.1):
        setting = Setting(dropout=dropout)
        _measure(bench, f"lora, dropout {dropout:g}", setting, [bench.row] * ROWS, counted=dropout == 0)


def packs(bench: Bench) -> None:
    """Documents of drawn (lognormal) lengths, the same tokens a step."""
    draw, left, lengths = np.random.default_rng(0), bench.row * ROWS, list[int]()
    while left:
        lengths.append(min(left, max(2, int(draw.lognormal(5.5, 0.8)))))
        left -= lengths[-1]
        if left == 1:
            lengths[-1] += 1
            left = 0
    _measure(bench, "packs", Setting(), lengths, counted=True)


def qlora(bench: Bench) -> None:
    """NF4."""
    _measure(bench, "qlora", Setting("qlora", rank=32), [bench.row] * ROWS)


def fp8(bench: Bench) -> None:
    """Where the device has it."""
    if not has_fp8(bench.device):
        bench.put("fp8", {"left out": "the GPU has no FP8"})
        return
    _measure(bench, "fp8", Setting(fp8=True), [bench.row] * ROWS, counted=True)


def peft(bench: Bench) -> None:
    """What a short script does; one row at a time, for all its logits."""
    _measure(bench, "peft", Setting(), [bench.row], build=plain_peft)


def peers(bench: Bench) -> None:
    """Each in a process of its own: they change the libraries that they use."""
    from benchmarks.gpu.peers import PACKAGES, write_tokenizer

    write_tokenizer(bench.base)  # here: one of them changes the library that this loads, if it comes first
    free_memory(bench.device)
    for name, module in PACKAGES.items():
        if find_spec(module) is None:
            bench.put(name, {"left out": "not installed"})
            continue
        found = _peer(bench, name, ROWS)
        if "out of memory" in str(found.get("ends", "")):
            found = {"rows": 1} | _peer(bench, name, 1)
        bench.put(name, found)


def _peer(bench: Bench, name: str, rows: int) -> dict[str, Any]:
    """What it measured with so many rows a step, or how it ended."""
    command = [
        sys.executable, "-m", "benchmarks.gpu.peers", name, "--base", str(bench.base),
        "--device", bench.device.type, "--row", str(bench.row), "--rows", str(rows),
    ]  # fmt: skip
    left = max(10.0, bench.seconds_left())
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        return {"left out": f"{bench.minutes:g} minutes are over"}
    said = [line for line in ended.stdout.splitlines() if line.startswith('{"version"')]
    if ended.returncode or not said:
        return {"ends": (ended.stderr.strip().splitlines() or ["without a word"])[-1]}
    measured: dict[str, Any] = json.loads(said[-1])
    return measured


def dpo(bench: Bench) -> None:
    """Pairs/s, the prompt computed once, and the reference as before step 1."""
    from data_prep.table.documents import Document
    from finetune.objectives import objective_of
    from finetune.recipe.rules.objective import with_objective_defaults
    from finetune.recipe.schema import Recipe
    from finetune.training.batches import batch_of

    values = {
        "model": {"base": "drawn"},
        "data": {"train": [{"generated": "orders"}]},
        "objective": {"kind": "dpo"},
    }
    objective = objective_of(with_objective_defaults(Recipe.model_validate(values)))
    part, pairs = bench.row // 8, 4
    draw = torch.Generator().manual_seed(0)

    def drawn(count: int) -> list[int]:
        return torch.randint(3, bench.vocabulary, (count,), generator=draw).tolist()

    documents = [
        Document([*prompt, *drawn(part)], ((part, 2 * part, 1.0),), "drawn", values=(-5.0 * part,))
        for prompt in (drawn(part) for _ in range(pairs))
        for _ in range(2)
    ]
    made = batch_of(documents, packed=True, pad_token_id=0, documents_per_row=2, shares_prompts=True)
    batch = on_device(made, bench.device)
    setting = Setting()
    with _model(bench, lambda: ours(bench.base, setting, bench.device, objective)) as model:
        optimizer = optimizer_of(model)
        seconds = seconds_of(lambda: take_step(model, optimizer, batch, setting), bench.device)
        bench.put("dpo", {"pairs/s": pairs / seconds} | memory_of(bench.device))


def lengths(bench: Bench) -> None:
    """Until memory or time ends."""
    setting, length, seconds = Setting("qlora", rank=32, long=True), 2 * bench.row, 5.0
    with _model(bench, lambda: ours(bench.base, setting, bench.device)) as model:
        optimizer = optimizer_of(model)
        # Two steps of twice the length, whose attention takes up to four times as long.
        while length <= (LONGEST if bench.shape != "tiny" else 256) and bench.seconds_left() > 8 * seconds:
            batch = pack([length], bench.vocabulary, bench.device)
            try:
                seconds = seconds_of(
                    partial(take_step, model, optimizer, batch, setting), bench.device, warm_up=1, steps=1
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                bench.put(f"row {length:,}", {"ends": "out of memory"})
                return
            bench.put(f"row {length:,}", {"tokens/s": length / seconds} | memory_of(bench.device))
            length *= 2


PARTS: dict[str, Callable[[Bench], None]] = {
    "numbers": numbers, "gemm": gemm, "lora": lora, "packs": packs, "qlora": qlora, "fp8": fp8, "dpo": dpo,
    "peft": peft, "peers": peers, "lengths": lengths,
}  # fmt: skip


def _measure(
    bench: Bench,
    name: str,
    setting: Setting,
    documents: list[int],
    *,
    build: Callable[..., Any] = ours,
    counted: bool = False,
) -> None:
    """Tokens/s, operations/s, memory; kernels and waits of a step where they are counted."""
    with _model(bench, lambda: build(bench.base, setting, bench.device)) as model:
        optimizer, batch = optimizer_of(model), pack(documents, bench.vocabulary, bench.device)

        def step() -> Any:
            return take_step(model, optimizer, batch, setting)

        seconds = seconds_of(step, bench.device)
        rate = sum(documents) / seconds
        by_weights, made = (one / seconds / 1e12 for one in bench.operations(documents))
        values: dict[str, Any] = {"tokens/s": rate, "TFLOP/s (4 N)": by_weights, "TFLOP/s (made)": made}
        if bench.peak is not None:
            values |= {"MFU (4 N)": by_weights / bench.peak, "MFU (made)": made / bench.peak}
        if "gemm" in bench.results:
            values["of gemm"] = made / bench.results["gemm"]["TFLOP/s"]
        values |= memory_of(bench.device)
        if counted and bench.device.type == "cuda":
            values |= _kernels_and_waits(step)
        bench.put(name, values)


@contextmanager
def _model(bench: Bench, build: Callable[[], Any]) -> Iterator[Any]:
    """A model, in memory that is free of those before it: its layers refer to each other in circles."""
    free_memory(bench.device)
    model = build()
    model.train()
    yield model


def free_memory(device: torch.device) -> None:
    """Of what nothing refers to any longer, and begin to count the most that is held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory_of(device: torch.device) -> dict[str, float]:
    """The most that was held since it was last asked to forget."""
    if device.type != "cuda":
        return {}
    return {
        "GB allocated": torch.cuda.max_memory_allocated() / 1e9,
        "GB reserved": torch.cuda.max_memory_reserved() / 1e9,
    }


def _kernels_and_waits(step: Callable[[], Any]) -> dict[str, int]:
    """Of one step: kernels that start, and calls for which the host waits for the device."""
    import warnings

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        wait(torch.device("cuda"))
    kernels = sum(
        event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(COPIES)
        for event in profile.events()
    )
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"kernels": kernels, "waits": sum("synchroniz" in str(one.message) for one in told)}


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins after so many")
    parser.add_argument("--json", type=Path, help="where the results go as well")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench-gpu needs an NVIDIA GPU, and torch finds none (`finetune doctor` says why).")
    device = torch.device(asked.device)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(device, asked.shape, Path(name) / "base", asked.minutes, file=asked.json)
        bench.put("machine", machine(device))
        if set(asked.parts) - {"numbers", "gemm"}:
            write_base(bench.base, asked.shape, device)
        for part in asked.parts:
            if bench.seconds_left() < 0:
                bench.put(part, {"left out": f"{asked.minutes:g} minutes are over"})
                continue
            try:
                PARTS[part](bench)
            except FinetuneError as error:
                bench.put(part, {"ends": str(error)})
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                bench.put(part, {"ends": "out of memory"})


def write_whole(file: Path, results: dict[str, Any]) -> None:
    """The results in place of those before, at once."""
    whole = file.with_name(f".{file.name}")
    whole.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(whole, file)


def machine(device: torch.device) -> dict[str, Any]:
    """Card, driver and versions."""
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device.type != "cuda":
        return {"device": str(device)} | found
    properties = torch.cuda.get_device_properties(device)
    driver = Path("/proc/driver/nvidia/version")
    return {
        "device": properties.name,
        "GB": round(properties.total_memory / 1e9, 1),
        "driver": driver.read_text().split("Module")[1].split()[0] if driver.exists() else "unknown",
        "CUDA": torch.version.cuda,
    } | found


if __name__ == "__main__":
    main()

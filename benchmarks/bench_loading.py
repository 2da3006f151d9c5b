"""What each of two processes holds of the host's memory until its first step begins: a base of 1.1B, mapped
from its files, quantised whole, or quantised and cut up layer by layer.

    python -m benchmarks.bench_loading [--maker make_llama.py] [--ways "qlora fsdp2" ...]

Of the process that holds the most: its own memory (USS, which nobody shares), and its part of what is shared
as well, such as the pages of the base's files (PSS). `before` is what it held when its libraries were there
and nothing of the base was read. On a CPU the device's memory is among it. --maker makes a base of that shape
with random weights.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bench_launch import make_base

ROOT = Path(__file__).resolve().parents[1]
WAYS = (
    "lora", "lora ddp", "lora fsdp2", "lora zero3", "qlora", "qlora fsdp2", "qlora zero3",
    "lora,lora ddp", "lora,lora fsdp2", "qlora,qlora ddp", "qlora,qlora fsdp2",
)  # fmt: skip
"""Adapters, one or two that train together, and an engine."""
OPTIONS = (
    "model.chat_template=llama2", "data.evaluation=null", "data.pack_length_tokens=256",
    "data.max_length_tokens=256", "train.epochs=null", "train.max_steps=1", "train.global_batch_size=2",
    "train.micro_batch_size=1", "train.rehearsal=false", "tracking.tracker=none", "adapter.rank=16",
)  # fmt: skip

BEGINS = "run folder"
"""What is said when all is loaded."""


def main() -> None:
    """A row for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--maker", type=Path, default=ROOT.parent / "shared" / "bench" / "make_llama.py")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_base(base, asked.maker)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e9
        print(f"the base's files: {size:.2f} GB; GB of one process\n{'':17} before   peak USS   peak PSS")
        for way in asked.ways:
            before, own, shared = peaks(way, base, Path(folder))
            print(f"{way:17} {before:6.2f} {own:10.2f} {shared:10.2f}", flush=True)


def peaks(way: str, base: Path, folder: Path) -> tuple[float, float, float]:
    """GB of the process that held the most: before the base, and at most."""
    methods, _, engine = way.partition(" ")
    method, *others = methods.split(",")
    recipes = [str(ROOT / "recipes" / "quickstart.yaml")] * (1 + len(others))
    command = [
        sys.executable, "-m", "finetune", "train-many" if others else "train", *recipes, *OPTIONS,
        f"model.base={base}", f"adapter.method={method}", f"output.folder={folder / 'runs'}",
        *(["--launch", engine, "--processes", "2"] if engine else []),
    ]  # fmt: skip
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        seen: dict[int, Held] = {}
        while process.poll() is None and BEGINS not in (folder / "said.txt").read_text():
            for worker in psutil.Process(process.pid).children() if engine else [process]:
                seen.setdefault(worker.pid, Held()).look_at(worker.pid, str(base))
            time.sleep(0.02)
        process.wait()
    if process.returncode:
        raise SystemExit((folder / "said.txt").read_text()[-2000:])
    most = max(seen.values(), key=lambda held: held.own)
    return most.before, most.own, most.shared


@dataclass
class Held:
    """GB of a process."""

    before: float = 0.0
    own: float = 0.0
    shared: float = 0.0
    reads: bool = False
    """Whether it has had a file of the base mapped."""

    def look_at(self, pid: int, base: str) -> None:
        """What it holds now."""
        try:
            info = psutil.Process(pid).memory_full_info()
            self.reads = self.reads or base in Path(f"/proc/{pid}/maps").read_text()
        except (psutil.Error, OSError):
            return
        own, shared = info.uss / 1e9, info.pss / 1e9
        if not self.reads:
            self.before = max(self.before, own)
        self.own, self.shared = max(self.own, own), max(self.shared, shared)


if __name__ == "__main__":
    main()

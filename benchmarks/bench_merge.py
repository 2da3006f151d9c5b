"""Merging beside `cp` of the same bytes and PEFT's merge_and_unload + save_pretrained, in turns in one run.

    python benchmarks/bench_merge.py [--shapes 1.1b 8b] [--rounds 3]

A LLaMA of that shape with random bf16 weights and a random LoRA adapter (rank 16, every linear layer). Each
command ends with everything on the disk (sync), and is a process of its own, imports included. Memory is the
peak of anonymous pages: files that are cached or mapped don't count. PEFT, whose memory is the model's, is
left out at 8b.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
POLL_SECONDS = 0.005


@dataclass
class Runs:
    """What a command took, each time."""

    seconds: list[float] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)
    """Bytes, at the peak."""


def main() -> None:
    """Measure each shape, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["1.1b"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scripts", type=Path, default=SHARED / "bench", help="the folder of make_llama.py and the peer"
    )
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "models" / "stories260k")
    asked = parser.parse_args()
    for shape in asked.shapes:
        with tempfile.TemporaryDirectory(prefix="finetune-merge-") as name:
            measure(shape, Path(name), asked)


def measure(shape: str, folder: Path, asked: argparse.Namespace) -> None:
    """One shape, in turns."""
    base, adapter = folder / "base", folder / "base-lora"
    subprocess.run(
        [sys.executable, str(asked.scripts / "make_llama.py"), "--shape", shape, str(base)],
        check=True,
        capture_output=True,
    )
    for path in asked.tokenizer.glob("tokenizer*"):
        shutil.copyfile(path, base / path.name)
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    ours = [sys.executable, "-m", "finetune", "merge", str(adapter), "--base", str(base), "--output"]
    commands = {
        "cp": ["cp", "-r", str(base)],
        "ours, tensors verified": [*ours[:-1], "--verify", "tensors", "--output"],
        "ours, not verified": [*ours[:-1], "--verify", "none", "--output"],
        "PEFT": [sys.executable, str(asked.scripts / "peer_peft_merge.py"), str(base), str(adapter)],
    }
    if shape == "8b":
        del commands["PEFT"]
    found = {name: Runs() for name in commands}
    for number in range(asked.rounds):
        # Another order each time: a command pays for what the one before left of the machine's free memory.
        order = list(commands)[number % len(commands) :] + list(commands)[: number % len(commands)]
        for name in order:
            command = commands[name]
            seconds, anonymous = timed([*command, str(folder / "output")], folder)
            found[name].seconds.append(seconds)
            found[name].anonymous.append(anonymous)
    print(
        f"\n{shape}, {size / 1e9:.2f} GB in bf16\n{'':24} {'seconds':>8} {'over cp':>8} {'anonymous':>10}   "
        "each run"
    )
    copy = statistics.median(found["cp"].seconds)
    for name, runs in found.items():
        median = statistics.median(runs.seconds)
        each = ", ".join(f"{seconds:.1f}" for seconds in runs.seconds)
        print(
            f"{name:24} {median:8.1f} {median / copy:7.2f}x {max(runs.anonymous) / 1e9:7.2f} GB   {each}",
            flush=True,
        )


def timed(command: list[str], folder: Path) -> tuple[float, int]:
    """Seconds until a command's output is on the disk, and its peak of anonymous bytes; the output is
    deleted."""
    os.sync()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        os.sync()
        seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{json.dumps(command)} failed:\n{(folder / 'log').read_text()}")
    shutil.rmtree(folder / "output")
    return seconds, peak


def anonymous_bytes(pid: int) -> int:
    """The process's anonymous memory now; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return int(kilobytes[0]) * 1024 if kilobytes else 0


if __name__ == "__main__":
    main()

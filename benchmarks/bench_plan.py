"""What `finetune plan` predicts beside what torch and the operating system measure, for recipes of differing
kind.

    python benchmarks/bench_plan.py

SmolLM2-135M, one thread a process. Tensors: weights, gradients, optimizer states and what autograd saves
(plan_work.py). Process: the peak of resident memory of a run of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from finetune.engines.launch.configs import find_config
from finetune.engines.single import SINGLE
from finetune.models.bases.folder import read_config
from finetune.models.bases.shapes import find_description, read_shape
from finetune.planning.data import load_of
from finetune.planning.job import job_of
from finetune.planning.memory import Memory, memory_of
from finetune.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    "data.evaluation=null", "data.max_length_tokens=512", "train.epochs=null", "train.max_steps=2",
    "train.micro_batch_size=1", "train.global_batch_size=2", "tracking.tracker=none", "train.rehearsal=false",
)  # fmt: skip
PACKED = "data.pack_length_tokens=2048"
FULL = (PACKED, "adapter=null", "adapter.method=full", "train.learning_rate=1e-5")
PADDED = ("data.pack_length_tokens=null", "train.micro_batch_size=8", "train.global_batch_size=8")
CASES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "lora, packed, bf16": ((PACKED, "train.precision=bf16"), None),
    "lora, padded, fp32": ((*PADDED, "train.precision=fp32"), None),
    "qlora, packed, bf16": ((PACKED, "adapter.method=qlora", "train.precision=bf16"), None),
    "lora, checkpointed, "
    "bf16": ((PACKED, "train.activation_checkpointing=true", "train.precision=bf16"), None),
    "lora, dropout, bf16": ((PACKED, "adapter.dropout=0.1", "train.precision=bf16"), None),
    "full, packed, fp32": ((*FULL, "train.precision=fp32"), None),
    "full, packed, bf16": ((*FULL, "train.precision=bf16"), None),
    "lora, zero2 on 2, fp32": ((PACKED, "train.precision=fp32"), "zero2"),
    "lora, zero3 on 2, fp32": ((PACKED, "train.precision=fp32"), "zero3"),
}  # fmt: skip


def main() -> None:
    """Each case that is named, a line; all of them where none is."""
    print(
        f"{'':26} {'tensors: plan':>13} {'torch':>9} {'off':>7}   {'process: plan':>13} {'measured':>9} "
        f"{'off':>7}"
    )
    for name in sys.argv[1:] or CASES:
        overrides, engine = CASES[name]
        planned, (tensors, process) = predict(overrides, engine), measure(overrides, engine)
        ours = planned.tensors - planned.logits
        print(
            f"{name:26} {ours / 1e9:10.2f} GB {tensors / 1e9:6.2f} GB {ours / tensors - 1:+7.1%}   "
            f"{planned.total / 1e9:10.2f} GB {process / 1e9:6.2f} GB {planned.total / process - 1:+7.1%}",
            flush=True,
        )


def predict(overrides: tuple[str, ...], engine: str | None) -> Memory:
    """The plan's memory of a process on the CPU."""
    recipe = load_recipe("quickstart", [*COMMON, *overrides]).recipe
    shape = read_shape(read_config(find_description(recipe.model)[0]))
    processes = 1 if engine is None else 2
    job = job_of(
        recipe,
        shape,
        load_of(recipe),
        recipe.train.precision,
        gpus=processes,
        device="cpu",
        engine=SINGLE if engine is None else find_config(engine).engine,
    )
    return memory_of(job)


def measure(overrides: tuple[str, ...], engine: str | None) -> tuple[float, float]:
    """Bytes of tensors, and of the process at its peak."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "benchmarks" / "plan_work.py")]
    launcher = [sys.executable]
    if engine is not None:
        config = str(find_config(engine).path)
        launcher = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            config,
            "--main_process_port",
            "0",
        ]
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "quickstart", *COMMON, *overrides, f"output.folder={folder}"]
        done = subprocess.run(
            [*launcher, *script, *words], env=environment, capture_output=True, text=True, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("PLAN ")]
        if done.returncode or not lines:
            sys.exit(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
        counted = json.loads(lines[-1].removeprefix("PLAN "))
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "quickstart", *COMMON, *overrides, f"output.folder={folder}"]
        options = [] if engine is None else ["--launch", engine, "--processes", "2"]
        subprocess.run(
            [sys.executable, "-m", "finetune", *words, *options],
            env=environment,
            capture_output=True,
            check=True,
        )
        (run,) = Path(folder).iterdir()
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    process = max(entry["system/memory_bytes"] for entry in entries if "system/memory_bytes" in entry)
    return sum(
        counted.get(name, 0.0) for name in ("weights", "gradients", "optimizer", "activations")
    ), process


if __name__ == "__main__":
    main()

"""A training step of LoRA, of DoRA in peft's own layers, and of DoRA in the fused ones, in turns.

    python -m benchmarks.bench_dora [--base FOLDER] [--pack 2048] [--method qlora] [--checkpointing]

SmolLM2-135M unless another base is given, rank 16 on all linear layers, bf16, a pack a step; all else
(attention, norms, the loss) is the toolkit's in each. A measurement is a process of its own, with jemalloc
where it is installed, and has one thread whose own time is counted, so that it hardly matters what else the
machine does; medians over all steps of all rounds, and the highest peak of resident memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_train import SHARED, base_folder
from benchmarks.train_work import WARM_UP_STEPS, recipe_of, take_step
from finetune.cli.quiet import quiet_libraries
from finetune.engines.launch.allocator import find_jemalloc
from finetune.models.kernels import install
from finetune.training import build
from finetune.training.inputs import build_inputs

KINDS = {"lora": "LoRA", "peft": "DoRA, peft's layers", "fused": "DoRA, fused"}


def main() -> None:
    """A line for each kind; or, in a process of its own, one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, help="a folder; SmolLM2-135M from its wheel unless said")
    parser.add_argument("--rows", type=Path, default=SHARED / "data" / "instruct" / "lf_alpaca_en_demo.json")
    parser.add_argument("--pack", type=int, default=2048, help="tokens of a pack")
    parser.add_argument("--document", type=int, default=512, help="tokens of a document at most")
    parser.add_argument("--method", default="lora", choices=["lora", "qlora"])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=list(KINDS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.base = asked.base or base_folder()
    if asked.kind is not None:
        quiet_libraries()
        print(json.dumps(measure(asked)))
        return
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(asked.rounds):
        for kind, runs in found.items():
            runs.append(measured_apart(kind, sys.argv[1:]))
    for kind, runs in found.items():
        speed = statistics.median(speed for run in runs for speed in run["tokens_per_second"])
        peak = max(run["peak_gb"] for run in runs)
        loss = runs[0]["loss"]
        print(f"{KINDS[kind]:20} {speed:6.0f} tokens a CPU second {peak:6.2f} GB   last loss {loss:.6f}")


def measured_apart(kind: str, words: Sequence[str]) -> dict[str, Any]:
    """What a process of its own measures."""
    preload = find_jemalloc()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment |= {} if preload is None else {"LD_PRELOAD": str(preload)}
    command = [sys.executable, "-m", "benchmarks.bench_dora", *words, "--kind", kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps of one pack each."""
    if asked.kind == "peft":
        install.unsupported = lambda *_: "peft's own is measured"
    asked.template, asked.precision = None, "bf16"
    recipe = recipe_of(asked)
    adapter = {"use_dora": asked.kind != "lora", "dropout": asked.dropout}
    recipe = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update=adapter)})
    inputs = build_inputs(recipe)
    model = build.build_model(recipe, inputs)
    trainer = build.build_trainer(
        recipe, inputs, model, checkpoints=Path(tempfile.mkdtemp()), evaluate_first=False, callbacks=[]
    )
    batches = iter(trainer.feed)
    model.train()
    speeds, loss = [], 0.0
    for step in range(WARM_UP_STEPS + asked.steps):
        batch = {name: value for name, value in next(batches).items() if name != "places"}
        started = time.process_time()
        loss = take_step(model, trainer.optimizer, batch, asked.precision)
        if step >= WARM_UP_STEPS:
            speeds.append(batch["input_ids"].numel() / (time.process_time() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"tokens_per_second": speeds, "peak_gb": peak, "loss": loss}


if __name__ == "__main__":
    main()

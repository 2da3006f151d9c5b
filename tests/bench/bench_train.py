"""Training speed and memory beside a plain peft loop on identical packs, TRL and LLaMA-Factory, in turns in one run.

    python tests/bench/bench_train.py                                    # ours and the plain loop
    python tests/bench/bench_train.py --peers VENVS --scripts FOLDER     # and TRL, with and without packing

SmolLM2-135M, LoRA of rank 16 on all linear layers, documents of at most 512 tokens in packs of 2,048. Tokens are real ones,
padding aside. Each measurement is a process of its own. VENVS holds the peers' virtual environments (VENVS/trl), FOLDER the
scripts that run them (peer_trl.py: one JSON line each).
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
WARM_UP_STEPS = 2


def main() -> None:
    """Measure in turns, and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=SHARED / "data" / "instruct" / "lf_alpaca_en_demo.json")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of one pack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--peers", type=Path, help="the folder of the peers' virtual environments")
    parser.add_argument("--scripts", type=Path, default=SHARED / "bench", help="the folder of the peers' scripts")
    parser.add_argument("--measure", choices=["ours", "plain"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.rows, asked.steps, asked.precision)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(asked.rounds):
        for name in ("ours", "plain"):
            command = [sys.executable, __file__, "--measure", name, "--rows", str(asked.rows)]
            command += ["--steps", str(asked.steps), "--precision", asked.precision]
            found.setdefault(name, []).append(output_of(command))
        for name, options in (("TRL", []), ("TRL, packing", ["--packing", "--batch", "4"])) if asked.peers else ():
            command = [str(asked.peers / "trl" / "bin" / "python"), str(asked.scripts / "peer_trl.py")]
            command += ["--model", str(base_folder()), "--data", str(asked.rows), *options]
            found.setdefault(name, []).append(output_of(command))
    table(found)


def table(found: dict[str, list[dict[str, Any]]]) -> None:
    """The median speed, the peak memory and ours over it, a line each."""
    speeds = {name: [run["real_tokens_per_second"] for run in runs] for name, runs in found.items()}
    ours = statistics.median(speeds["ours"])
    print(f"{'':14} {'tokens/s':>9} {'ours is':>9} {'memory':>9}   each run")
    for name, runs in found.items():
        median = statistics.median(speeds[name])
        memory = max(run["peak_gb"] for run in runs)
        each = ", ".join(f"{speed:.0f}" for speed in speeds[name])
        print(f"{name:14} {median:9.0f} {ours / median:8.2f}x {memory:6.1f} GB   {each}; last loss {runs[0]['last_loss']:.4f}")


def output_of(command: list[str]) -> dict[str, Any]:
    """The JSON object in the last line that a command prints."""
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def base_folder() -> Path:
    """SmolLM2-135M, as the quickstart takes it."""
    from finetune.model.checkpoint import resolve_base
    from finetune.recipe.load import load_recipe

    return resolve_base(load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe.model).folder


def measure(kind: str, rows: Path, steps: int, precision: str) -> dict[str, Any]:
    """Steps of one pack each, by this toolkit's model or by a plain one, over the same packs."""
    import torch

    from finetune.recipe.schema import Recipe
    from finetune.train import build

    tree = {
        "model": {"base": str(base_folder())},
        "adapter": {"rank": 16, "alpha": 32},
        "data": {
            "train": [{"path": str(rows), "format": "alpaca"}],
            "max_length_tokens": 512,
            "pack_length_tokens": 2048,
        },
        "train": {"max_steps": steps, "global_batch_size": 1, "precision": precision},
        "tracking": {"tracker": "none"},
    }
    recipe = Recipe.model_validate(tree)
    inputs = build.build_inputs(recipe)
    model = build.build_model(recipe, inputs) if kind == "ours" else plain_model(recipe, inputs.precision.dtype)
    trainer = build.build_trainer(
        recipe, inputs, model, checkpoints=Path(tempfile.mkdtemp()), evaluate_first=False, callbacks=[]
    )
    batches = iter(trainer.feed)
    optimizer = trainer.optimizer
    model.train()
    seconds, tokens, loss = 0.0, 0, torch.zeros(())
    for step in range(WARM_UP_STEPS + steps):
        batch = {name: value for name, value in next(batches).items() if name != "places"}
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch, num_items_in_batch=int(batch["shift_labels"].ne(-100).sum())).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= WARM_UP_STEPS:
            seconds += time.perf_counter() - started
            tokens += batch["input_ids"].numel()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"real_tokens_per_second": tokens / seconds, "peak_gb": peak, "last_loss": loss.item()}


def plain_model(recipe: Any, dtype: Any) -> Any:
    """transformers' model with peft's adapter and cross-entropy over all logits; packs by transformers' own mask."""
    import types

    import torch
    from transformers import AutoModelForCausalLM

    from finetune.model.adapter import attach
    from finetune.train.build import seed_everything

    base = AutoModelForCausalLM.from_pretrained(recipe.model.base, dtype=dtype, attn_implementation="sdpa")
    seed_everything(recipe.train.seed)
    model = attach(base, recipe.adapter)
    own_forward = base.forward

    def forward(self: Any, input_ids: Any, position_ids: Any, shift_labels: Any, num_items_in_batch: int, **_: Any) -> Any:
        logits = own_forward(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction="sum")
        return types.SimpleNamespace(loss=loss / num_items_in_batch)

    base.forward = types.MethodType(forward, base)
    return model


if __name__ == "__main__":
    main()

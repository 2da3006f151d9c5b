"""What tracking costs a step, and how long lists and plans take.

    python benchmarks/bench_runs.py

A log of nine metrics to metrics.jsonl and each tracker, in milliseconds of the training's own thread;
`finetune runs list` over 1,000 run folders, `finetune plan` of a 70B shape with nothing but config.json, and
`finetune report` of a run with 1,000,000 logged points, as whole commands (the median of five).
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from finetune.recipe.lock import Lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.folder import create_run
from finetune.runs.tracking.start import start_tracker

NAMES = ("loss", "gradient_norm", "learning_rate", "tokens_per_second", "supervised_tokens", "epoch")
LOGS = 200
RECIPE: dict[str, Any] = {
    "model": {"base": "/bases/x"},
    "data": {"train": [{"path": "/rows.jsonl", "format": "alpaca"}]},
}
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "vocab_size": 128256, "num_attention_heads": 64, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip


def main() -> None:
    """Each figure, a line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {
            "TRACKIO_DIR": str(folder / "trackio"),
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
        }
        os.environ.pop("WANDB_API_KEY", None)
        for tracker in ("none", "trackio", "wandb"):
            print(f"a log, {tracker:8} {log_milliseconds(tracker, folder):8.3f} ms")
        print(
            f"runs list, 1,000  {command_seconds(['runs', 'list', str(many_runs(folder / 'runs'))]):8.2f} s"
        )
        page = str(folder / "page.html")
        report = ["report", str(long_run(folder)), "--html", page, "--overwrite"]
        print(
            f"report, 1,000,000 {command_seconds(report):8.2f} s, {Path(page).stat().st_size / 1e3:,.0f} kB"
        )
        print(f"plan, 70B         {command_seconds(['plan', str(large(folder)), *GPUS]):8.2f} s")


def log_milliseconds(name: str, folder: Path) -> float:
    """The median of a log, as the training's thread sees it."""
    section = TrackingSection.model_validate({"tracker": name})
    tracker = start_tracker(section.trackers[0], section, f"bench-{name}", {}, folder=folder)
    seconds = []
    with (folder / "metrics.jsonl").open("a", buffering=1) as file:
        for step in range(1, LOGS + 1):
            metrics = {f"train/{part}": float(step) for part in NAMES}
            started = time.perf_counter()
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            tracker.log(metrics, step)
            seconds.append(time.perf_counter() - started)
    tracker.finish("finished")
    return statistics.median(seconds) * 1000


def long_run(folder: Path) -> Path:
    """A run that logged its loss a million times."""
    draw = random.Random(0)
    run = create_run(folder / "long", "long")
    run.lock_path.write_text(Lock(Recipe.model_validate(RECIPE), "", "").to_yaml())
    with run.metrics_path.open("w") as file:
        for step in range(1, 1_000_001):
            file.write(json.dumps({"step": step, "train/loss": 2 + draw.random()}) + "\n")
    return run.path


def many_runs(folder: Path) -> Path:
    """A thousand finished runs."""
    recipe = Recipe.model_validate(RECIPE)
    lock = Lock(recipe=recipe, command="x", created="2026-11-26").to_yaml()
    for number in range(1000):
        run = create_run(folder, f"run{number}")
        run.lock_path.write_text(lock)
        run.write_summary(
            {
                "status": "finished",
                "name": run.name,
                "steps": number,
                "recipe": recipe.model_dump(mode="json"),
            }
        )
    return folder


def large(folder: Path) -> Path:
    """A recipe for a base of which only the config is there."""
    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(LLAMA_70B))
    (folder / "rows.jsonl").write_text("")
    path = folder / "large.yaml"
    path.write_text(
        f"model: {{base: {base}}}\n"
        f"data: {{train: [{{path: {folder / 'rows.jsonl'}, format: messages}}], pack_length_tokens: 4096}}\n"
    )
    return path


GPUS = ("--gpus", "8", "--gpu-memory", "80GiB")


def command_seconds(words: list[str]) -> float:
    """The median of five."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "finetune", *words], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()

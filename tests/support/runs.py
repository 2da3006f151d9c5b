"""Run folders without weights."""

import json
from pathlib import Path
from typing import Any

from finetune.recipe.lock import Lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder, create_run

RECIPE: dict[str, Any] = {
    "model": {"base": "/bases/tiny"},
    "data": {"train": [{"path": "/rows.jsonl", "format": "alpaca"}]},
    "train": {"learning_rate": 1e-4},
}


def make_run(folder: Path, name: str, *, loss: float, **train: Any) -> RunFolder:
    """A finished run without weights."""
    run = create_run(folder, name)
    recipe = Recipe.model_validate(RECIPE | {"train": RECIPE["train"] | train})
    lock = Lock(
        recipe=recipe,
        command="finetune train",
        created=f"2026-11-26T00:00:{loss:.0f}+00:00",
        base={"kind": "folder", "sha256": "a" * 64},
        data={"rows.jsonl": "b" * 64},
        versions={"torch": "2.13.0", "finetune": "0.1.0"},
        device={"type": "cpu", "threads": 2},
    )
    run.lock_path.write_text(lock.to_yaml())
    summary = {"status": "finished", "name": run.name, "created": lock.created, "method": "lora", "steps": 3}
    run.write_summary(
        summary
        | {"evaluation_loss": loss, "tokens_per_second": 600.0, "recipe": recipe.model_dump(mode="json")}
    )
    lines = [{"step": step, "train/loss": loss / step, "train/learning_rate": 1e-4} for step in (1, 2, 3)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run

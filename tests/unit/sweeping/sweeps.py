"""A recipe with a space, on a tiny base."""

import json
from pathlib import Path
from typing import Any

RATE = {"train.learning_rate": {"log_uniform": [1e-4, 1e-1]}}


def write_recipe(folder: Path, base: Path, sweep: dict[str, Any], **sections: Any) -> Path:
    """sweep.yaml in a folder, of 40 rows, 4 steps and an evaluation after each; its runs go to runs beside it.
    JSON is YAML."""
    words = ["blue", "lamp", "seven", "Ada"] * 10
    rows = [
        {"instruction": f"Say {word} {i} times.", "input": "", "output": " ".join([word] * (i % 5 + 1))}
        for i, word in enumerate(words)
    ]
    for name, part in (("train", rows[:32]), ("chosen_by", rows[32:36]), ("judged_by", rows[36:])):
        (folder / f"{name}.json").write_text(json.dumps(part))
    recipe: dict[str, Any] = {
        "model": {"base": str(base)},
        "adapter": {"rank": 4},
        "data": {
            "train": [{"path": "train.json", "format": "alpaca"}],
            "evaluation": {"sources": [{"path": "chosen_by.json", "format": "alpaca"}]},
            "max_length_tokens": 128,
        },
        "train": {
            "micro_batch_size": 2, "precision": "fp32", "max_steps": 4, "evaluate_every": 1, "rehearsal": False,
        },
        "tracking": {"tracker": "none"},
        "output": {"folder": str(folder / "runs")},
    }  # fmt: skip
    for name, section in sections.items():
        recipe[name] = recipe.get(name, {}) | section
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(recipe | {"sweep": {"space": RATE, "trials": 4} | sweep}))
    return path


JUDGES = [{"path": "judged_by.json", "format": "alpaca"}]

"""Pairs of answers to learn from, and what a run on them logged."""

import json
from pathlib import Path

from finetune.runs.folder import RunFolder


def write_pairs(path: Path, rows: int = 24) -> str:
    """Pairs whose chosen answer repeats the prompt's number; the two are the longer one in turn."""
    lines = []
    for index in range(rows):
        right, wrong = f"it is {index}", f"not {index + 7}"
        if index % 2:
            right += ", " + right
        else:
            wrong += " " + wrong
        lines.append(json.dumps({"prompt": f"number {index}?", "chosen": right, "rejected": wrong}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def logged(run: RunFolder) -> list[dict[str, float]]:
    return list(map(json.loads, run.metrics_path.read_text().splitlines()))


def column(run: RunFolder, name: str) -> list[float]:
    return [entry[name] for entry in logged(run) if name in entry]

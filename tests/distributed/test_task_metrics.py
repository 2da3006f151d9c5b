"""Metrics and classification heads with two processes: what one process measures and learns."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.conftest import Train, difference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="launches are shown on Linux only")


def data_of(folder: Path) -> dict[str, Any]:
    """Rows whose answer is one of two labels."""
    rows = [{"text": f"{colour} {n} {colour}", "label": colour} for n in range(20) for colour in ("red", "green")]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": [{"path": str(folder / "colours.jsonl"), "format": "classification"}]}


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=pytest.mark.long)])
def test_two_processes_measure_what_one_does(train: Train, tmp_path: Path, engine: str) -> None:
    """Each takes its share of the rows; figures in training and of the result, and the order of predictions, are the same."""
    sections = {
        "data": data_of(tmp_path),
        "train": {"evaluate_every_steps": 2, "best_by": "likelihood_accuracy"},
        "evaluate": {
            "metrics": ["loss", "accuracy", "chrf", "likelihood_accuracy", "bits_per_byte"], "labels": ["red", "green"],
            "max_new_tokens": 4, "rows_in_training": 1,
        },
    }  # fmt: skip
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    for name in ("loss", "accuracy", "chrf", "likelihood_accuracy", "bits_per_byte"):
        assert shared.losses(f"final/{name}") == pytest.approx(alone.losses(f"final/{name}"), rel=1e-4)
        assert shared.losses(f"eval/{name}") == pytest.approx(alone.losses(f"eval/{name}"), rel=1e-4)
        assert len(alone.losses(f"final/{name}")) == 1
    assert alone.run is not None
    assert shared.run is not None
    predictions = [
        [json.loads(line) for line in (run / "predictions" / "final.jsonl").read_text().splitlines()]
        for run in (alone.run, shared.run)
    ]
    assert [(row["place"], row["answer"]) for row in predictions[0]] == [
        (row["place"], row["answer"]) for row in predictions[1]
    ]


@pytest.mark.long
def test_a_head_learns_the_same_with_two_processes(train: Train, tmp_path: Path) -> None:
    """Losses, weights and accuracy are one process's."""
    head = {"head": {"labels": ["red", "green"]}}
    sections = {"data": data_of(tmp_path), "model": head, "evaluate": {"metrics": ["loss", "accuracy"]}}
    alone, shared = train(**sections), train("--launch", "ddp", "--processes", "2", **sections)
    assert difference(shared.weights(), alone.weights()) < 1e-4
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-4)
    assert shared.losses("final/accuracy") == alone.losses("final/accuracy")


@pytest.mark.parametrize(
    ("engine", "sections", "words"),
    [
        ("zero2", {"model": {"head": {"labels": ["red", "green"]}}}, "can't be used with model.head"),
        ("fsdp2", {"evaluate": {"metrics": ["chrf"]}}, "can't be used with evaluate.metrics: no process holds a whole model"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    train: Train, tmp_path: Path, engine: str, sections: dict[str, Any], words: str
) -> None:
    """Before any process starts: one message, exit 2, no run."""
    done = train("--launch", engine, "--processes", "2", code=2, data=data_of(tmp_path), **sections)
    assert words in done.stderr
    assert done.run is None

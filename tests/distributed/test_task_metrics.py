"""Metrics and classification heads with two processes: what one process measures and learns."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launches import Train, difference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="launches are shown on Linux only")


def data_of(folder: Path) -> dict[str, Any]:
    """Rows whose answer is one of two labels."""
    rows = [
        {"text": f"{colour} {n} {colour}", "label": colour} for n in range(20) for colour in ("red", "green")
    ]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": [{"path": str(folder / "colours.jsonl"), "format": "classification"}]}


def long(*values: str) -> list[Any]:
    """Values of a parameter for the long tests."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


def kept_texts(run: Path | None) -> list[dict[str, Any]]:
    """Predictions of the result and samples, line by line."""
    assert run is not None
    files = (run / "predictions" / "final.jsonl", run / "samples.jsonl")
    entries = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [{name: entry.get(name) for name in ("place", "step", "prompt", "answer")} for entry in entries]


@pytest.mark.parametrize("engine", long("ddp", "zero2", "zero3", "fsdp2"))
def test_two_processes_measure_what_one_does(train: Train, tmp_path: Path, engine: str) -> None:
    """Whether each takes some rows or all take all: figures in training and of the result, predictions,
    samples."""
    sections = {
        "data": data_of(tmp_path),
        "train": {"evaluate_every": 2, "save_every": 2, "best_by": "chrf"},
        "evaluate": {
            "metrics": ["loss", "accuracy", "chrf", "likelihood_accuracy", "bits_per_byte"], "labels": ["red", "green"],
            "max_new_tokens": 4, "rows_in_training": 1,
        },
        # Not due at the last step: written between its checkpoint and the loading of the best one.
        "tracking": {"samples": {"prompts": ["red 1 red", "green"], "every_steps": 3, "max_new_tokens": 4}},
    }  # fmt: skip
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    for name in ("loss", "accuracy", "chrf", "likelihood_accuracy", "bits_per_byte"):
        assert shared.losses(f"final/{name}") == pytest.approx(alone.losses(f"final/{name}"), rel=1e-4)
        assert shared.losses(f"eval/{name}") == pytest.approx(alone.losses(f"eval/{name}"), rel=1e-4)
        assert len(alone.losses(f"final/{name}")) == 1
    assert kept_texts(shared.run) == kept_texts(alone.run)


@pytest.mark.long
@pytest.mark.parametrize("method", ["qlora", "full"])
@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_cut_up_weights_are_measured_whatever_is_trained(
    train: Train, tmp_path: Path, engine: str, method: str
) -> None:
    """Answers and likelihoods, before the first step and at the end, are those of one process."""
    sections = {
        "data": data_of(tmp_path),
        "adapter": {"method": method},
        "train": {"learning_rate": 1e-3},
        "evaluate": {
            "metrics": ["loss", "likelihood_accuracy", "chrf"],
            "labels": ["red", "green"],
            "max_new_tokens": 4,
        },
        "tracking": {"samples": {"prompts": ["red 1 red", "green"], "every_steps": 2, "max_new_tokens": 4}},
    }
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    for name in ("loss", "likelihood_accuracy", "chrf"):
        assert shared.losses(f"final/{name}") == pytest.approx(alone.losses(f"final/{name}"), rel=1e-4)
    assert kept_texts(shared.run) == kept_texts(alone.run)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_learns_the_same_with_two_processes(
    train: Train, tmp_path: Path, engine: str, precision: str
) -> None:
    """Losses, weights and accuracy are one process's."""
    head = {"head": {"labels": ["red", "green"]}}
    evaluate = {"metrics": ["loss", "accuracy"]}
    sections = {
        "data": data_of(tmp_path),
        "model": head,
        "evaluate": evaluate,
        "train": {"precision": precision},
    }
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    assert "base_model.model.score.weight" in shared.weights()
    assert difference(shared.weights(), alone.weights()) < (1e-4 if precision == "fp32" else 5e-2)
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-4 if precision == "fp32" else 5e-2)
    # The head computes in float32 everywhere, so a loss is off by the rounding of the layers below and of its
    # weight.
    assert shared.losses()[0] == pytest.approx(alone.losses()[0], rel=1e-4 if precision == "fp32" else 1e-3)
    assert shared.losses("final/accuracy") == alone.losses("final/accuracy")

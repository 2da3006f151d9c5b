"""Answers drawn and learned from by two processes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launches import Train, difference
from tests.support.models import save_tiny_llama


def sections(folder: Path, **objective: Any) -> dict[str, Any]:
    """A recipe's sections, on a base whose answers differ from one another; in the last step of an epoch one
    of two processes has no prompt."""
    save_tiny_llama(folder / "base", initializer_range=0.15)
    rows = [{"prompt": f"number {index}?", "completion": f"it is {index}"} for index in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards = {"digits": {"kind": "regex", "pattern": "[0-9]"}, "short": {"kind": "length", "most_tokens": 4}}
    return {
        "model": {"base": str(folder / "base")},
        "data": {
            "train": [{"path": "rows.jsonl", "format": "prompt_completion"}],
            "evaluation": {"rows": 3},
            "pack_length_tokens": None,
        },
        "objective": {"kind": "grpo", "group_size": 6, "max_new_tokens": 8, "rewards": rewards} | objective,
        "train": {"optimizer": "sgd", "learning_rate": 0.05, "max_steps": 4, "evaluate_every": 4},
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "method"), [("fsdp2", "lora"), ("ddp", "lora"), ("ddp", "qlora"), ("fsdp2", "qlora")]
)
def test_two_processes_are_one(train: Train, tmp_path: Path, engine: str, method: str) -> None:
    """What is drawn, and drawn anew, the rewards, the divergence from the start, the loss and the weights;
    advantages are scaled by the deviation of both processes' rewards."""
    own = sections(tmp_path, scale="batch", kl_weight=0.1, loss="dapo", group_size=2, resample=2)
    own |= {"adapter": {"method": method}}
    alone = train(**own)
    both = train("--launch", engine, "--processes", "2", **own)
    for name in (
        "train/reward",
        "train/answer_tokens",
        "train/groups_resampled",
        "eval/reward",
        "train/kl",
        "train/loss",
    ):
        assert both.losses(name) == pytest.approx(alone.losses(name), rel=1e-4, abs=2e-5), name
    assert difference(both.weights(), alone.weights()) < 1e-3


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "reference"), [("fsdp2", "base"), ("ddp", "base"), ("ddp", "another run")]
)
def test_the_divergence_of_two_processes_is_one_s(
    train: Train, tmp_path: Path, engine: str, reference: str
) -> None:
    """Of a run that goes on from another, from the base and from that one: the divergence and the weights."""
    own = sections(tmp_path, kl_weight=0.1)
    first = train(**own).run
    assert first is not None
    own["adapter"] = {"continue_from": str(first / "adapter")}
    own["objective"] |= {"reference": "base" if reference == "base" else str(first)}
    alone = train(**own)
    both = train("--launch", engine, "--processes", "2", **own)
    for name in ("train/kl", "train/loss"):
        assert both.losses(name) == pytest.approx(alone.losses(name), rel=1e-4, abs=2e-5), name
    assert (alone.losses("train/kl")[0] > 1e-4) is (reference == "base")
    assert difference(both.weights(), alone.weights()) < 1e-3


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_engines_that_step_backwards_are_refused(train: Train, tmp_path: Path, engine: str) -> None:
    """With one message, before a process is started."""
    ended = train("--launch", engine, "--processes", "2", code=2, **sections(tmp_path))
    assert "objective.kind: grpo" in ended.stdout + ended.stderr
    assert "Take ddp or fsdp2" in ended.stdout + ended.stderr

"""Objectives over two processes: one of a single file, and the numbers of rows that no engine may round."""

import json
from pathlib import Path

import pytest

from finetune import objectives
from tests.distributed.launches import Train, accelerate_launch, difference
from tests.support.manual import module_of

SCRIPT = """
from finetune import objectives
from finetune.cli.app import run
from tests.support.manual import module_of

objectives.OBJECTIVES += (module_of("extending_objectives").Pairwise,)
raise SystemExit(run())
"""


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero3"])
def test_another_objective_trains_on_two_processes(
    train: Train, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers computed before step 1, one known before a step's first loss and a divisor in pairs: those of
    one process."""
    rows = [
        {
            "prompt": f"number {index}?",
            "chosen": f"{index} " * (1 + index % 5),
            "rejected": "no " * (1 + index % 3),
        }
        for index in range(31)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "script.py").write_text(SCRIPT)
    sections = {
        "data": {"train": [{"path": "pairs.jsonl", "format": "preference"}], "max_length_tokens": 64},
        "objective": {"kind": "pairwise", "beta": 0.5},
        "train": {"evaluate_every": 4, "max_steps": 7, "max_gradient_norm": 1.0},
    }
    script = str(tmp_path / "script.py")
    own = module_of("extending_objectives").Pairwise
    monkeypatch.setattr(objectives, "OBJECTIVES", (*objectives.OBJECTIVES, own))
    alone = train(**sections)
    both = train(command=[*accelerate_launch(engine), script], **sections)
    assert both.losses() == pytest.approx(alone.losses(), rel=2e-5)
    assert both.losses("eval/loss") == pytest.approx(alone.losses("eval/loss"), rel=2e-5)
    assert difference(both.weights(), alone.weights()) < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_preferences_are_one_processs(train: Train, tmp_path: Path, kind: str, engine: str) -> None:
    """Losses, what is logged of the rewards (KTO's baseline, which is the step's, included) and the trained
    weights; with rows that don't come out even over the processes."""
    rows = [
        {
            "prompt": f"number {index}?",
            "chosen": f"{index} " * (1 + index % 5),
            "rejected": "no " * (1 + index % 3),
        }
        for index in range(31)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "data": {"train": [{"path": "pairs.jsonl", "format": "preference"}], "max_length_tokens": 64},
        "objective": {"kind": kind},
        "train": {"evaluate_every": 4, "max_steps": 7, "max_gradient_norm": 1.0},
    }
    alone, both = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    names = ["train/loss", "train/reward_accuracy", "eval/loss", "eval/reward_accuracy"]
    names += ["train/baseline", "eval/rewards/good"] if kind == "kto" else ["train/log_ratios/chosen"]
    for name in names:
        assert both.losses(name) == pytest.approx(alone.losses(name), rel=1e-3, abs=1e-4), name
    assert difference(both.weights(), alone.weights()) < 2e-3


NUMBER = 2.0**20 + 2000
"""Half-way to the next number of bf16, nearly."""


@pytest.mark.long
def test_fsdp2_leaves_a_row_s_numbers_as_they_are(train: Train, tmp_path: Path) -> None:
    """Targets that bf16 doesn't have: the first loss of a regression is their mean square, whatever the
    engine computes in."""
    rows = [{"text": f"row {index}", "value": NUMBER + index} for index in range(16)]
    (tmp_path / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "model": {"head": {"problem": "regression"}},
        "data": {"train": [{"path": "numbers.jsonl", "format": "regression"}], "evaluation": None},
        "train": {"global_batch_size": 16, "max_steps": 1, "precision": "bf16"},
    }
    both = train(
        "--launch",
        "fsdp2",
        "--processes",
        "2",
        **sections | {"data": sections["data"] | {"pack_length_tokens": None}},
    )
    mean_square = sum((NUMBER + index) ** 2 for index in range(16)) / 16
    assert both.losses()[0] == pytest.approx(mean_square, rel=1e-4)

"""Objectives over two processes: one of a single file, and the numbers of rows that no engine may round."""

import json
from pathlib import Path

import pytest

from finetune import objectives
from finetune.runs.folder import BEGUN_VALUES
from tests.distributed.launches import Launched, Train, accelerate_launch, difference, resume_launch
from tests.support.manual import module_of
from tests.support.processes import assert_equal

SCRIPT = """
from finetune import objectives
from finetune.cli.app import run
from tests.support.manual import module_of

objectives.OBJECTIVES += (module_of("extending_objectives").Pairwise,)
raise SystemExit(run())
"""

KILLED = """
import os, signal
from finetune.cli.app import run
from finetune.training.callbacks import document_values

class Killed(document_values.BegunValues):
    def keep(self):
        super().keep()
        if os.environ["RANK"] == "1" and self.batches.total() == 3:
            os.kill(os.getpid(), signal.SIGKILL)

document_values.SECONDS_BETWEEN_SAVES = 0.0
document_values.BegunValues = Killed
raise SystemExit(run())
"""


def write_pairs(path: Path) -> None:
    """31 rows: they don't come out even over two processes."""
    rows = [
        {
            "prompt": f"number {index}?",
            "chosen": f"{index} " * (1 + index % 5),
            "rejected": "no " * (1 + index % 3),
        }
        for index in range(31)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero3"])
def test_another_objective_trains_on_two_processes(
    train: Train, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers computed before step 1, one known before a step's first loss and a divisor in pairs: those of
    one process."""
    write_pairs(tmp_path / "pairs.jsonl")
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
    write_pairs(tmp_path / "pairs.jsonl")
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


@pytest.mark.long
def test_a_pass_of_the_reference_continues_after_kill_9(
    train: Train, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Of one of two processes, in its midst: the resumed run is the uninterrupted one."""
    write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "killed.py").write_text(KILLED)
    sections = {
        "data": {"train": [{"path": "pairs.jsonl", "format": "preference"}], "max_length_tokens": 64},
        "objective": {"kind": "dpo"},
    }
    whole = train("--launch", "ddp", "--processes", "2", **sections)
    train(command=[*accelerate_launch("ddp"), str(tmp_path / "killed.py")], code=None, **sections)
    run = tmp_path / "runs" / "recipe-002"
    assert len(list((run / BEGUN_VALUES).iterdir())) == 2
    done = resume_launch(run, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "where an earlier start was" in done.stderr + done.stdout
    assert_equal(Launched(0, "", "", run).weights(), whole.weights())
    assert not (run / BEGUN_VALUES).exists()


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

"""A checkpoint of N processes, resumed by M."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launches import Launched, Train, accelerate_launch, difference

INTERRUPT = """
import sys
from finetune.training.callbacks import graceful_stop as callbacks

class StopAt(callbacks.GracefulStop):
    def on_step_end(self, args, state, control, **options):
        if state.global_step == 3:
            control.should_save = control.should_training_stop = True
        return control

callbacks.GracefulStop = StopAt
from finetune.cli.app import main
main()
"""


@pytest.mark.parametrize(
    ("engine", "before", "after"),
    [
        pytest.param("ddp", 1, 2, marks=pytest.mark.long),
        pytest.param("ddp", 2, 1, marks=pytest.mark.long),
        pytest.param("fsdp2", 2, 2, marks=pytest.mark.long),
        pytest.param("fsdp2", 2, 4, marks=pytest.mark.long),
        pytest.param("zero2", 2, 2, marks=pytest.mark.long),
        pytest.param("zero2", 2, 4, marks=pytest.mark.long),
        pytest.param("zero2", 4, 2, marks=pytest.mark.long),
        pytest.param("zero3", 2, 2, marks=pytest.mark.long),
        pytest.param("zero3", 2, 4, marks=pytest.mark.long),
    ],
)
def test_another_number_of_processes_goes_on(
    train: Train, tmp_path: Path, environment: dict[str, str], engine: str, before: int, after: int
) -> None:
    """Adapter, optimizer and position in the data carry over: the end is the uninterrupted run's."""
    steps = {"max_steps": 6}
    whole = train(train=steps)
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPT)
    launcher = ["--launch", engine, "--processes"]
    if before == 1:
        train(train=steps, command=[sys.executable, str(script)], code=75)
    else:
        # The launcher starts `-m finetune`: a package of that name, found first, stands in for the
        # interruption.
        train(train=steps, command=[*accelerate_launch(engine, before), str(script)], code=None)
    run = tmp_path / "runs" / "recipe-002"
    assert (run / "checkpoints" / "checkpoint-3" / "complete.json").is_file()
    options = [] if after == 1 else [*launcher, str(after)]
    command = [sys.executable, "-m", "finetune", "train", "--resume", str(run), *options]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert difference(Launched(0, "", "", run).weights(), whole.weights()) < 1e-4
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.long
def test_zero_resumes_its_own_only(train: Train, tmp_path: Path, environment: dict[str, str]) -> None:
    """Another engine, one process among them, is refused with the reason, and so is somebody else's
    checkpoint, unless it is trusted."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPT)
    train(train={"max_steps": 6}, command=[*accelerate_launch("zero2"), str(script)], code=None)
    run = tmp_path / "runs" / "recipe-001"
    command = [sys.executable, "-m", "finetune", "train", "--resume", str(run)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "was started with zero2 and 2 processes" in done.stderr
    # The same run, in the hands of somebody with another key.
    command += ["--launch", "zero2", "--processes", "2"]
    other = environment | {"XDG_STATE_HOME": str(tmp_path / "another")}
    done = subprocess.run(
        command, env=other, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Give --trust-checkpoint if you know who wrote it" in done.stderr
    command += ["--trust-checkpoint"]
    done = subprocess.run(
        command, env=other, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_a_run_without_its_result_is_finished(
    train: Train, tmp_path: Path, environment: dict[str, str], engine: str
) -> None:
    """Ended after its last checkpoint: no step is taken again; result and metrics are what they would have
    been."""
    launcher = ["--launch", engine, "--processes", "2"]
    whole = train(
        *launcher,
        train={"save_every": 2, "evaluate_every": 2, "best_by": "loss"},
        evaluate={"metrics": ["loss", "chrf"], "max_new_tokens": 4},
        # Not due at the last step: written after its checkpoint, and before the best one is loaded.
        tracking={"samples": {"prompts": ["Ada"], "every_steps": 3, "max_new_tokens": 4}},
    )
    run, weights = whole.run, whole.weights()
    assert run is not None
    final, entries = whole.losses("final/chrf"), (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(final) == 1
    (run / "metrics.jsonl").write_text("".join(entry for entry in entries if "final/" not in entry))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    shutil.rmtree(run / "adapter")
    command = [sys.executable, "-m", "finetune", "train", "--resume", str(run), *launcher]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all steps were taken" in done.stdout
    assert difference(whole.weights(), weights) == 0
    assert "the result is the best checkpoint" in done.stdout
    assert whole.losses("final/chrf") == final


@pytest.mark.parametrize(
    ("engine", "sections", "part"),
    [
        pytest.param("zero2", {"model": {"new_tokens": ["<order>"]}}, "token", marks=pytest.mark.long),
        pytest.param("fsdp2", {"model": {"new_tokens": ["<order>"]}}, "token", marks=pytest.mark.long),
        pytest.param(
            "fsdp2", {"adapter": {"modules_to_save": ["lm_head"]}}, "lm_head", marks=pytest.mark.long
        ),
        # DeepSpeed compiles an operation of its own for this one.
        pytest.param(
            "zero3", {"adapter": {"modules_to_save": ["lm_head"]}}, "lm_head", marks=pytest.mark.long
        ),
    ],
)
def test_what_is_saved_beside_lora_is_whole(
    train: Train, engine: str, sections: dict[str, dict[str, object]], part: str
) -> None:
    """Rows of new tokens and modules to save, which are cut up in training, are whole and equal to one
    process's."""
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    assert any(part in name for name in shared.weights())
    assert all(weight.numel() > 0 for weight in shared.weights().values())
    assert difference(shared.weights(), alone.weights()) < 1e-4

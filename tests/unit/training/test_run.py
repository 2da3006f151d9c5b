"""Runs: the folder, the lock, exact resume, early stopping, an orderly stop. Real processes, real signals."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import common
from finetune.errors import CheckpointError, ModelError, TrackerError
from finetune.evaluation.evaluation import Evaluation
from finetune.models.device import choose_precision
from finetune.recipe.lock import read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder, list_summaries
from finetune.runs.target import resolve_target
from finetune.training import run
from finetune.training.checkpoints.store import complete_checkpoints
from tests.support.messages import hearing
from tests.support.processes import EXACT, adapter_of, assert_equal, launch, start, wait_for
from tests.support.recipes import MakeRecipe


def test_the_run_folder_holds_what_it_says(make_recipe: MakeRecipe, tiny_base: Path) -> None:
    """A run has adapter, lock, metrics, summary and log; its adapter loads with plain peft; its summary adds
    up."""
    from peft import AutoPeftModelForCausalLM

    recipe = make_recipe()
    folder = start(recipe)
    lock = read_lock(folder.lock_path)
    assert lock.recipe == recipe
    assert lock.base["sha256"]
    assert len(lock.data) == 1
    assert (
        lock.versions["torch"] == torch.__version__.split("+")[0]
        or lock.versions["torch"] == torch.__version__
    )
    lines = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    assert {
        "step",
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "train/tokens_per_second",
    } <= set(lines[1])
    assert lines[0]["step"] == 0
    assert lines[-1]["eval/loss"] == folder.read_summary()["evaluation_loss"]
    summary = folder.read_summary()
    assert summary["status"] == "finished"
    assert summary["evaluation_loss"] < summary["evaluation_loss_before"]
    log = folder.log_path.read_text()
    assert "40 of 40 rows kept" in log
    assert "parameters train" in log
    assert "step 1/" in log
    assert not (folder.path / ".running").exists()
    model = AutoPeftModelForCausalLM.from_pretrained(folder.adapter)
    assert model.peft_config["default"].base_model_name_or_path == str(tiny_base)
    assert (folder.adapter / "tokenizer.json").is_file()


def test_a_second_run_never_overwrites_the_first(make_recipe: MakeRecipe) -> None:
    """Two runs of one recipe get two folders, and the same adapter."""
    recipe = make_recipe(train=EXACT | {"max_steps": 2})
    first, second = start(recipe), start(recipe)
    assert (first.name, second.name) == ("run-001", "run-002")
    assert_equal(adapter_of(first), adapter_of(second))
    assert [summary["name"] for summary in list_summaries(Path(recipe.output.folder))] == [
        "run-001",
        "run-002",
    ]


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_an_interrupted_run_resumes_bit_for_bit(make_recipe: MakeRecipe, end: signal.Signals) -> None:
    """With LoRA dropout, a run killed after step 4 (kill -9, or Ctrl-C) and resumed ends in the uninterrupted
    run's adapter."""
    recipe = make_recipe(
        adapter={"rank": 4, "dropout": 0.1}, train=EXACT | {"evaluate_every": 5, "max_steps": 30}
    )
    whole = start(recipe, "whole")
    process = launch(recipe)
    folder = RunFolder(Path(recipe.output.folder) / "killed-001")
    wait_for(folder.checkpoints / "checkpoint-4" / "complete.json", process)
    process.send_signal(end)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("finishing this step and saving a checkpoint (Ctrl-C again to stop at once)" in said) == (
        end == signal.SIGINT
    )
    assert folder.read_summary()["status"] == ("running" if end == signal.SIGKILL else "stopped")
    assert not folder.adapter.exists()
    resumed: list[str] = []
    with hearing(resumed.append):
        run.resume(folder.path, recipe=None)
    assert any(line.startswith("resuming from checkpoint-") for line in resumed)
    assert_equal(adapter_of(folder), adapter_of(whole))
    losses = [
        [json.loads(line).get("train/loss") for line in f.metrics_path.read_text().splitlines()]
        for f in (folder, whole)
    ]
    assert losses[0] == losses[1]
    for count in ("tokens", "supervised_tokens"):
        assert folder.read_summary()[count] == whole.read_summary()[count] > 0


def test_resume_refuses_what_changed(make_recipe: MakeRecipe, alpaca_file: Path) -> None:
    """A finished run, another recipe, and data that changed since are each refused with their own message."""
    recipe = make_recipe(train=EXACT | {"max_steps": 4})
    folder = start(recipe)
    with pytest.raises(CheckpointError, match="is finished"):
        run.resume(folder.path, recipe=None)
    folder.write_summary({"status": "running"})
    with pytest.raises(CheckpointError, match="the recipe differs"):
        run.resume(folder.path, recipe=make_recipe(train=EXACT | {"max_steps": 5}))
    alpaca_file.write_text(alpaca_file.read_text().replace("blue", "green"))
    changed = rf"{re.escape(str(alpaca_file))} then [0-9a-f]{{64}}, now [0-9a-f]{{64}}\. Put back"
    with pytest.raises(CheckpointError, match=f"data changed since this run was started: {changed}"):
        run.resume(folder.path, recipe=None)
    with pytest.raises(CheckpointError, match="not a run folder"):
        run.resume(folder.path.parent, recipe=None)


def test_early_stopping_keeps_the_best(make_recipe: MakeRecipe) -> None:
    """With a learning rate that soon does harm, training stops early and the result is the best checkpoint's
    adapter."""
    train = {
        "micro_batch_size": 8, "precision": "fp32", "optimizer": "sgd", "schedule": "constant",
        "max_gradient_norm": None, "learning_rate": 40.0 / 8, "max_steps": 60, "evaluate_every": 1,
        "early_stopping": {"patience_evaluations": 3},
    }  # fmt: skip
    folder = start(make_recipe(train=train))
    summary = folder.read_summary()
    assert summary["steps"] < 60
    best = folder.checkpoints / f"checkpoint-{summary['best_step']}"
    assert best in complete_checkpoints(folder.checkpoints)
    assert_equal(adapter_of(folder), load_file(best / "adapter_model.safetensors"))
    assert summary["best_evaluation_loss"] == summary["evaluation_loss"] < summary["last_evaluation_loss"]


def test_a_failed_run_keeps_its_checkpoints_and_says_so(make_recipe: MakeRecipe) -> None:
    """A run that stops at a non-finite step has the status failed, no adapter, and its last whole
    checkpoint."""
    from finetune.errors import TrainingError

    train = {
        "micro_batch_size": 8, "precision": "fp32", "optimizer": "sgd", "schedule": "constant",
        "max_gradient_norm": None, "learning_rate": 10.0, "max_steps": 100, "save_every": 1,
        "warmup_ratio": 0.0,
    }  # fmt: skip
    recipe = make_recipe(train=train, adapter={"rank": 4, "alpha": 1e4, "target_modules": ["lm_head"]})
    with pytest.raises(TrainingError, match="nothing was updated"):
        start(recipe)
    folder = RunFolder(Path(recipe.output.folder) / "run-001")
    assert folder.read_summary()["status"] == "failed"
    assert "nothing was updated" in folder.read_summary()["error"]
    assert "ERROR NotFiniteError: the " in folder.log_path.read_text()
    assert not folder.adapter.exists()
    kept = complete_checkpoints(folder.checkpoints)
    assert kept
    assert all(
        tensor.isfinite().all() for tensor in load_file(kept[-1] / "adapter_model.safetensors").values()
    )


def test_a_tracker_that_cannot_start_leaves_no_run(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb online without a key ends before training, and the run folder is gone."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recipe = make_recipe(tracking={"tracker": "wandb", "wandb_mode": "online"})
    with pytest.raises(TrackerError, match="WANDB_API_KEY"):
        start(recipe)
    assert not list(Path(recipe.output.folder).iterdir())


def test_an_optimizer_without_its_package_leaves_no_run(make_recipe: MakeRecipe) -> None:
    """An optimizer whose package is not installed is refused by the name of its key, and the run folder is
    gone."""
    recipe = make_recipe(train={"optimizer": "grokadamw"})
    with pytest.raises(ModelError, match=r"train\.optimizer grokadamw can't be used here"):
        start(recipe)
    assert not list(Path(recipe.output.folder).iterdir())


def test_the_last_step_is_logged(make_recipe: MakeRecipe) -> None:
    """With fewer steps than log_every, the summary still has the training loss and the speed."""
    summary = start(make_recipe(train=EXACT | {"max_steps": 3, "log_every": 100})).read_summary()
    assert summary["train_loss"] > 0
    assert summary["tokens_per_second"] > 0


def test_a_terminal_that_is_gone_ends_no_run(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where writing to the terminal fails, training goes on to its result, and run.log has the rest."""

    def gone(line: str, **_: object) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr(common, "out", gone)
    with common.messages_shown():
        common.tell_messages(as_json=False)
        summary = run.start(make_recipe(train=EXACT | {"max_steps": 2}), name="run", command="test").summary
    assert summary["status"] == "finished"


def test_no_secret_is_written(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens in the environment stand in no file of the run."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "secret-0123456789")
    folder = start(make_recipe(train=EXACT | {"max_steps": 1}))
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"secret-0123456789" in path.read_bytes()]


def test_an_adapter_folder_keeps_what_it_needs_when_it_is_moved(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """A copy of adapter/ alone still knows its RoPE scaling, its date and that it was trained on NF4."""
    scaling = {"type": "linear", "factor": 2.0}
    tree = make_recipe(train=EXACT | {"max_steps": 1}).model_dump(mode="json", exclude_unset=True)
    tree["model"] |= {"rope_scaling": scaling, "date_string": "1 May 2025"}
    folder = start(Recipe.model_validate(tree))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder.adapter, moved)
    target = resolve_target(str(moved))
    assert target.adapter == moved
    assert target.model == resolve_target(str(folder.path)).model
    assert target.model.rope_scaling is not None
    assert not target.quantized
    notes = json.loads((moved / "finetune.json").read_text())
    (moved / "finetune.json").write_text(json.dumps(notes | {"method": "qlora"}))
    assert resolve_target(str(moved)).quantized


@pytest.mark.parametrize(
    ("asked", "quantization"), [({"quantization": "int8"}, "int8"), ({"double_quantization": False}, "nf4")]
)
def test_a_run_on_a_quantised_base_is_asked_on_that_base(
    make_recipe: MakeRecipe, tmp_path: Path, asked: dict[str, object], quantization: str
) -> None:
    """The run, a checkpoint and a copy of adapter/ alone know how the base was quantised; the loss that is
    evaluated later is the run's own; a resumed run ends as one that was not stopped."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    adapter = {"method": "qlora", "rank": 4} | asked
    train = EXACT | {"max_steps": 4, "save_every": "2 steps"}
    recipe = make_recipe(adapter=adapter, train=train)
    folder = start(recipe)
    moved = Path(shutil.copytree(folder.adapter, tmp_path / "elsewhere"))
    checkpoint = folder.checkpoints / "checkpoint-2"
    for name in (folder.path, moved, checkpoint):
        assert resolve_target(str(name)).quantization == quantization
    own, before = folder.read_summary()["evaluation_loss"], adapter_of(folder)
    later = Evaluation(recipe, choose_precision("fp32")).of(resolve_target(str(moved)))
    assert later.values["loss"] == pytest.approx(own, rel=1e-6)
    for lost in (folder.checkpoints / "checkpoint-4", folder.adapter):
        shutil.rmtree(lost)
    folder.summary_path.unlink()
    run.resume(folder.path, recipe=None)
    assert_equal(adapter_of(folder), before)

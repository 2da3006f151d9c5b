"""What rewards are relative to: the start, the base, or another run."""

import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import finetune
from finetune.engines.launch.check import check_launch, plan_launch
from finetune.errors import CheckpointError, FinetuneError, LaunchError, ModelError
from finetune.runs.folder import BEGUN_VALUES, VALUES, RunFolder
from finetune.runs.further import command_to_train_further
from finetune.signals import Requests
from finetune.training import run as training
from finetune.training.callbacks import document_values
from finetune.training.callbacks.document_values import DocumentValues
from tests.support.messages import hearing
from tests.support.models import save_tiny_llama
from tests.support.preferences import column
from tests.support.processes import adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import MakeRecipe


@pytest.fixture
def first(pairs: MakeRecipe) -> RunFolder:
    """A run of DPO from a fresh adapter."""
    return start(pairs(), name="first")


def test_a_continued_adapter_is_compared_with_its_base(pairs: MakeRecipe, first: RunFolder) -> None:
    """reference: base measures before step 1 what the run that is continued measured at its end."""
    adapter = {"continue_from": str(first.adapter)}
    again = start(pairs(adapter=adapter, objective={"kind": "dpo", "reference": "base"}), name="again")
    for name in ("eval/loss", "eval/reward_margin", "eval/log_ratios/chosen"):
        assert column(again, name)[0] == pytest.approx(column(first, name)[-1], rel=1e-4)
    assert column(again, "eval/reward_margin")[0] > 0
    score = finetune.evaluate(again.path).scores["reward_margin"].value
    assert score == pytest.approx(column(again, "eval/reward_margin")[-1], rel=1e-3)


def test_a_reference_that_is_not_what_its_run_wrote_is_refused(pairs: MakeRecipe, first: RunFolder) -> None:
    path = first.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(ModelError, match="is not what run first-001 wrote"):
        start(pairs(objective={"kind": "dpo", "reference": str(first.adapter)}))


@pytest.mark.parametrize("metrics", [[], ["reward_margin"]], ids=["before step 1", "and in training"])
def test_where_an_adapter_started_stays_frozen(pairs: MakeRecipe, metrics: list[str]) -> None:
    """PiSSA with its base as the reference, also of metrics in training: the adapter that is written is the
    one that was trained, relative to where it started."""
    section = {"init": "pissa", "rank": 4, "alpha": 8}
    evaluate = {"metrics": metrics, "rows_in_training": 6 if metrics else None}
    run = start(
        pairs(
            adapter=section,
            objective={"kind": "dpo", "reference": "base"},
            evaluate=evaluate,
            train={"evaluate_every": 4},
        )
    )
    assert run.read_summary()["status"] == "finished"
    score = finetune.evaluate(run.path).scores["reward_margin"].value
    assert score == pytest.approx(column(run, "eval/reward_margin")[-1], rel=1e-3)


def test_a_run_that_is_trained_further_keeps_its_reference(pairs: MakeRecipe, first: RunFolder) -> None:
    """The printed command names it: the start of the new run is another one."""
    lock = finetune.Run(first.path).lock
    assert "objective.reference=base" in command_to_train_further(first, lock)
    adapter = {"continue_from": str(first.adapter)}
    again = start(pairs(adapter=adapter, train={"max_steps": 1, "evaluate_every": None}), name="again")
    command = command_to_train_further(again, finetune.Run(again.path).lock)
    assert f"objective.reference={first.adapter}" in command


def test_a_continued_adapter_is_its_own_reference(pairs: MakeRecipe, first: RunFolder) -> None:
    """By default: every margin begins at 0."""
    again = start(
        pairs(adapter={"continue_from": str(first.adapter)}, train={"max_steps": 1, "evaluate_every": 1})
    )
    assert column(again, "eval/reward_margin")[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_reference_may_be_another_run(pairs: MakeRecipe, first: RunFolder, kind: str) -> None:
    """The base, relative to a run, is the run relative to the base with the other sign."""
    train = {"max_steps": 1, "evaluate_every": 1}
    other = start(pairs(objective={"kind": kind, "reference": str(first.path)}, train=train), name="other")
    if kind == "kto":
        assert column(other, "train/rewards/good")[0] < 0 < column(other, "train/rewards/bad")[0]
        return
    for name in ("eval/reward_margin", "eval/log_ratios/chosen", "eval/log_ratios/rejected"):
        assert column(other, name)[0] == pytest.approx(-column(first, name)[-1], rel=1e-4)
    with pytest.raises(FinetuneError, match="runs with another reference have eval/reward_accuracy"):
        finetune.evaluate(other.path)


@pytest.mark.parametrize("pack", [None, 256])
def test_the_start_is_its_reference_to_the_bit(pairs: MakeRecipe, pack: int | None) -> None:
    """In bf16 too, where rounding depends on what a row is computed beside: the first step's rewards are 0."""
    data = {"pack_length_tokens": pack, "evaluation": None}
    run = start(pairs(data=data, train={"precision": "bf16", "max_steps": 1, "evaluate_every": None}))
    assert column(run, "train/log_ratios/chosen") == column(run, "train/log_ratios/rejected") == [0.0]


def test_a_reference_of_another_base_is_refused(
    pairs: MakeRecipe, first: RunFolder, tmp_path: Path, tiny_base: Path
) -> None:
    """So is one with another tokenizer, one where models are cut up, and a whole model."""
    section = {"kind": "dpo", "reference": str(first.path)}
    base = tmp_path / "elsewhere"
    shutil.copytree(tiny_base, base)
    save_tiny_llama(base, rms_norm_eps=1e-6)
    with pytest.raises(ModelError, match=r"run first-001 was trained on another base than model\.base"):
        start(pairs(objective=section, model={"base": str(base)}), name="other")
    with pytest.raises(ModelError, match="or they have other ids; rows mean the same to both only with one"):
        start(pairs(objective=section, model={"base": str(tiny_base), "new_tokens": ["<x>"]}), name="other")
    with pytest.raises(LaunchError, match=r"objective.reference \(an adapter\): each process would hold"):
        check_launch(plan_launch("zero3", processes=2), pairs(objective=section))
    with pytest.raises(ModelError, match=r"is a whole model; expected a run or an adapter of model\.base"):
        start(pairs(objective={"kind": "dpo", "reference": str(tiny_base)}), name="other")


def test_reference_values_that_changed_are_refused(pairs: MakeRecipe) -> None:
    """A checkpoint has their hash, and so has the lock at the end."""
    run = start(pairs(train={"save_every": 4, "evaluate_every": None}))
    assert len(finetune.Run(run.path).lock.final["document_values_sha256"]) == 64
    shutil.rmtree(run.adapter)
    run.write_summary(run.read_summary() | {"status": "stopped"})
    shutil.rmtree(run.checkpoints / "checkpoint-8")
    values: dict[str, np.ndarray[Any, Any]] = load_file(run.path / VALUES)
    values["train"][0] += 1.0
    save_file(values, run.path / VALUES)
    with pytest.raises(CheckpointError, match=r"has changed: what it holds has SHA-256 .* Put it back"):
        training.resume(run.path, recipe=None)


def test_reference_values_with_a_flipped_bit_are_computed_again(pairs: MakeRecipe) -> None:
    """Where no step was taken yet: the run ends in the undamaged one's adapter."""
    whole, damaged = (start(pairs(), name=name) for name in ("whole", "damaged"))
    for part in (damaged.adapter, *damaged.checkpoints.iterdir()):
        shutil.rmtree(part)
    damaged.write_summary(damaged.read_summary() | {"status": "stopped"})
    content = bytearray((damaged.path / VALUES).read_bytes())
    content[-1] ^= 1
    (damaged.path / VALUES).write_bytes(content)
    said: list[str] = []
    with hearing(said.append):
        training.resume(damaged.path, recipe=None)
    assert any("is damaged" in line and line.endswith("It is computed again.") for line in said)
    assert_equal(adapter_of(damaged), adapter_of(whole))


def test_kept_values_are_shared_in_one_order(pairs: MakeRecipe, tmp_path: Path) -> None:
    """Whatever order the file is read in: processes that add them up would mix training rows with others."""
    recipe = pairs()
    trainer = trainer_of(recipe, tmp_path / "checkpoints")
    values = DocumentValues(
        trainer, start(recipe).path / VALUES, lambda: nullcontext(trainer.model), Requests()
    )
    kept = {tuple(values._kept(values.documents(), may_be_made=False) or ()) for _ in range(10)}
    assert kept == {("train", "evaluation")}


def test_a_long_pass_says_what_is_left(pairs: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a minute; here one a batch."""
    monkeypatch.setattr(document_values, "SECONDS_BETWEEN_LINES", 0.0)
    said: list[str] = []
    with hearing(said.append):
        start(pairs(train={"max_steps": 1, "evaluate_every": None}))
    left = [line for line in said if "documents are left" in line]
    assert left[0] == "computing what the objective needs: some 42 documents are left"
    assert left[-1].endswith("some 0 documents are left")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_pass_that_was_stopped_continues_where_it_was(
    pairs: MakeRecipe, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """After the batch, with all that is computed; the adapter is an uninterrupted run's. What is damaged
    meanwhile is computed again."""
    monkeypatch.setattr(document_values, "SECONDS_BETWEEN_LINES", 0.0)
    recipe = pairs(train={"max_steps": 2, "evaluate_every": None})
    whole = start(recipe, name="whole")
    said: list[str] = []

    def stop_at_30(line: str) -> None:
        said.append(line)
        if "some 30 documents are left" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with hearing(stop_at_30):
        run = start(recipe, name="stopped")
    assert run.read_summary()["status"] == "stopped"
    assert any("stopped after step 0; resume with" in line for line in said)
    kept = run.path / BEGUN_VALUES / "rank-0-of-1.safetensors"
    if damaged:
        content = kept.read_bytes()
        kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said.clear()
    with hearing(said.append):
        training.resume(run.path, recipe=None)
    left = [line for line in said if "documents are left" in line]
    assert f"some {42 if damaged else 24} documents" in left[0]
    assert any("where an earlier start was" in line for line in said) is not damaged
    assert any("is damaged" in line for line in said) is damaged
    assert not kept.parent.exists()
    assert_equal(adapter_of(run), adapter_of(whole))

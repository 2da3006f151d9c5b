"""What the divergence of drawn answers is measured from."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune
from finetune.engines.launch.check import check_launch, plan_launch
from finetune.errors import CheckpointError, LaunchError, ModelError
from finetune.recipe.lock import read_lock
from finetune.runs.folder import RunFolder
from finetune.runs.further import command_to_train_further
from finetune.training import run as training
from tests.support.grpo import OBJECTIVE, Asking
from tests.support.messages import hearing, sending
from tests.support.models import save_tiny_llama
from tests.support.preferences import column
from tests.support.processes import adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import found

LIGHT = OBJECTIVE | {"kl_weight": 1e-6}
"""Which says the divergence, and hardly learns from it."""


@pytest.fixture
def first(asking: Asking) -> RunFolder:
    """A run whose answers are no more its base's."""
    return start(asking(), "first")


def going_on(first: RunFolder, reference: str) -> dict[str, Any]:
    return {
        "adapter": {"continue_from": str(first.adapter)},
        "objective": LIGHT | {"reference": reference},
        "train": {"max_steps": 1},
    }


@pytest.mark.parametrize("reference", ["base", "run"])
def test_the_divergence_is_from_another_model(asking: Asking, first: RunFolder, reference: str) -> None:
    """Of a run that goes on from another: 0 from that one, and from the base what its own logged
    log-probabilities say."""
    if reference == "run":
        run = start(asking(**going_on(first, str(first.adapter))))
        assert column(run, "train/kl")[0] == pytest.approx(0, abs=1e-9)
        return
    run = start(asking(**going_on(first, "base")))
    assert column(run, "train/kl")[0] > 1e-3


def test_a_named_adapter_is_measured_from_as_it_is(asking: Asking, first: RunFolder, tmp_path: Path) -> None:
    """An adapter without an effect, of another rank than the one that trains, is the base; so the two say
    the same divergence."""
    empty = tmp_path / "empty"
    other = start(asking(adapter={"rank": 2}, train={"max_steps": 1}), "other")
    shutil.copytree(other.adapter, empty)
    weights = {
        name: torch.zeros_like(own) for name, own in load_file(empty / "adapter_model.safetensors").items()
    }
    save_file(weights, empty / "adapter_model.safetensors", {"format": "pt"})
    (empty / "finetune.json").unlink(missing_ok=True)
    named = start(asking(**going_on(first, str(empty))), "named")
    base = start(asking(**going_on(first, "base")), "base")
    assert column(named, "train/kl")[0] == pytest.approx(column(base, "train/kl")[0], rel=1e-5)


def test_the_base_s_weights_are_there_once(asking: Asking, first: RunFolder) -> None:
    """The reference's frozen tensors are the trained model's own."""
    trainer = trainer_of(asking(objective=LIGHT | {"reference": str(first.adapter)}), Path("unused"), None)
    own = {weight.data_ptr() for weight in trainer.model.parameters()}
    reference: Any = trainer.rollouts.reference.model
    frozen = [weight for name, weight in reference.named_parameters() if "lora_" not in name]
    assert frozen
    assert all(weight.data_ptr() in own for weight in frozen)


def test_a_stopped_run_goes_on_bit_for_bit(asking: Asking, first: RunFolder, tmp_path: Path) -> None:
    """With a reference of its own, whose hash is in the lock; with another one it doesn't go on."""
    reference = shutil.copytree(first.adapter, tmp_path / "reference")
    objective = OBJECTIVE | {"kl_weight": 0.1, "reference": str(reference)}
    recipe = asking(objective=objective, train={"max_steps": 4})
    whole = start(recipe, "whole")
    with hearing(sending({"step 2/": [signal.SIGTERM]})):
        stopped = start(recipe, "stopped")
    kept = stopped.path.with_name("kept")
    shutil.copytree(stopped.path, kept)
    training.resume(stopped.path, recipe=None)
    assert_equal(adapter_of(stopped), adapter_of(whole))
    assert len(read_lock(whole.lock_path).reference["adapter"]) == 64
    file = reference / "adapter_model.safetensors"
    save_file({name: own * 2 for name, own in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="reference changed since this run was started: adapter then"):
        training.resume(kept, recipe=None)


def test_references_that_do_not_fit_are_refused(
    asking: Asking, first: RunFolder, drawing_base: Path, tmp_path: Path
) -> None:
    """Of another base or tokenizer, a whole model, and where models are cut up."""
    objective = LIGHT | {"reference": str(first.path)}
    base = tmp_path / "elsewhere"
    shutil.copytree(drawing_base, base)
    save_tiny_llama(base, initializer_range=0.15, rms_norm_eps=1e-6)
    with pytest.raises(ModelError, match=r"run first-001 was trained on another base than model\.base"):
        start(asking(objective=objective, model={"base": str(base)}), "other")
    with pytest.raises(ModelError, match="or they have other ids; rows mean the same to both only with one"):
        start(asking(objective=objective, model={"base": str(drawing_base), "new_tokens": ["<x>"]}), "other")
    with pytest.raises(ModelError, match=r"is a whole model; expected a run or an adapter of model\.base"):
        start(asking(objective=LIGHT | {"reference": str(drawing_base)}), "other")
    with pytest.raises(LaunchError, match=r"objective.reference \(an adapter\): each process would hold"):
        check_launch(plan_launch("fsdp2", processes=2), asking(objective=objective))


def test_a_run_that_is_trained_further_keeps_its_reference(asking: Asking) -> None:
    """The printed command names it where it is measured from, and no other."""
    for weight, named in ((0.1, True), (0.0, False)):
        run = start(asking(objective=OBJECTIVE | {"kl_weight": weight}, train={"max_steps": 1}), "run")
        command = command_to_train_further(run, finetune.Run(run.path).lock)
        assert ("objective.reference=base" in command) is named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "objective: {kind: grpo, reference: base, %s}",
            "kl_weight is 0, so that nothing is measured from it",
        ),
        ("objective: {kind: grpo, kl_weight: 0.1, reference: none, %s}", "got none, which is kl_weight: 0"),
        ("objective: {kind: grpo, kl_weight: 0.1, reference: '', %s}", "got nothing; expected start, base"),
        (
            "{adapter: {method: full}, objective: {kind: grpo, kl_weight: 0.1, reference: base, %s}}",
            "method full has no adapter to leave out",
        ),
        (
            "{adapter: {method: full}, objective: {kind: grpo, kl_weight: 0.1, reference: /a/run, %s}}",
            "method full trains the base that the reference would stand on",
        ),
    ],
)
def test_bad_keys_are_refused(text: str, message: str) -> None:
    """Each with one message, by the recipe alone."""
    (line,) = found(text % "rewards: {a: {kind: regex, pattern: x}}")
    assert line.startswith("objective.reference")
    assert message in line

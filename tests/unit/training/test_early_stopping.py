"""Early stopping: what counts as an improvement, the start included, and what is said of the result."""

import re

import pytest
from safetensors.torch import load_file
from transformers import TrainerState

from finetune.recipe.schema.train import TrainSection
from finetune.training.callbacks.best_checkpoint import BestCheckpoint
from tests.support.messages import hearing
from tests.support.processes import adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe

NAN = float("nan")


def state_of(name: str, values: list[float], first_step: int = 0) -> TrainerState:
    history = [{"step": step, f"eval_{name}": value} for step, value in enumerate(values, first_step)]
    return TrainerState(log_history=history, best_global_step=1)


def keeping(rule: int = 2, best_by: str | None = None, **stopping: float) -> BestCheckpoint:
    train = {"early_stopping": {"patience_evaluations": 2} | stopping, "best_by": best_by}
    return BestCheckpoint(TrainSection.model_validate(train), rule)


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([6.0], False),
        ([6.0, 5.0, 4.0, 3.0], False),
        ([6.0, 5.0, 5.5], False),
        ([6.0, 5.0, 5.5, 5.0], True),
        ([6.0, 7.0], False),
        ([6.0, 13.8, 9.0], True),
        ([6.0, 7.0, 5.0, 5.5], False),
        ([6.0, 6.0, 6.0], True),
        ([NAN, 7.0, 6.5], False),
        ([6.0, NAN, NAN], True),
    ],
)
def test_patience_counts_from_the_start(losses: list[float], stops: bool) -> None:
    """Two evaluations in a row that are no better than the best so far, the one before the first step
    included, end a run."""
    assert keeping().says_stop(state_of("loss", losses)) is stops
    assert keeping(best_by="accuracy").says_stop(state_of("accuracy", [-loss for loss in losses])) is stops


@pytest.mark.parametrize(
    ("losses", "stops"),
    [([6.0, 13.8, 9.0, 7.0], False), ([6.0, 7.0, 8.0], False), ([6.0, 7.0, 8.0, 8.0], True)],
)
def test_a_run_of_an_earlier_version_counts_as_it_did(losses: list[float], stops: bool) -> None:
    """By rule 1 the first evaluation after training began is the first that others have to better."""
    assert keeping(rule=1).says_stop(state_of("loss", losses)) is stops


def test_an_improvement_is_more_than_the_minimum() -> None:
    """An evaluation that is better than the best by no more than minimum_improvement is none."""
    assert keeping(minimum_improvement=0.5).says_stop(state_of("loss", [6.0, 5.6, 5.5]))
    assert not keeping(minimum_improvement=0.5).says_stop(state_of("loss", [6.0, 5.4, 5.2]))


@pytest.mark.parametrize(
    ("best_by", "values", "words"),
    [
        ("loss", [6.0, 5.0], "the result is the best checkpoint, step 1"),
        (
            "loss",
            [6.0, 6.0],
            "warning: no checkpoint is better than the start, where loss was 6.0000.*step 1, with 6.0000",
        ),
        (
            "accuracy",
            [0.5, 0.25],
            "warning: no checkpoint is better than the start, where accuracy was 0.5000.*with 0.2500",
        ),
        ("accuracy", [0.5, 0.75], "the result is the best checkpoint"),
        ("matthews", [-0.5, -0.25], "the result is the best checkpoint"),
        ("matthews", [-0.25, -0.5], "start, where matthews was -0.2500.*with -0.5000"),
        ("loss", [NAN, 6.0], "the result is the best checkpoint"),
    ],
)
def test_the_verdict_names_both_values(best_by: str, values: list[float], words: str) -> None:
    """Whether the best checkpoint is better than the start, in its own scale, whichever way is up."""
    said: list[str] = []
    with hearing(said.append):
        keeping(best_by=best_by).tell_verdict(state_of(best_by, values))
    assert re.search(words, said[0])


def test_a_run_that_only_does_harm(make_recipe: MakeRecipe) -> None:
    """With a rate that ruins the model, patience 1 ends the run at step 1; log says that the start was
    better, and by what."""
    train = {
        "micro_batch_size": 8, "precision": "fp32", "schedule": "constant", "learning_rate": 1.0,
        "max_steps": 20, "warmup_ratio": 0.0, "evaluate_every": 1, "rehearsal": False,
        "early_stopping": {"patience_evaluations": 1},
    }  # fmt: skip
    folder = start(
        make_recipe(adapter={"rank": 4, "alpha": 1000, "target_modules": ["lm_head"]}, train=train)
    )
    summary = folder.read_summary()
    before, after = summary["evaluation_loss_before"], summary["evaluation_loss"]
    assert summary["steps"] == 1
    assert after > before
    log = folder.log_path.read_text()
    assert "stopped early after step 1: no improvement in 1 evaluations" in log
    assert f"WARNING no checkpoint is better than the start, where loss was {before:.4f}" in log
    assert f"step 1, with {after:.4f}" in log
    assert "the result is the best checkpoint" not in log
    assert_equal(
        adapter_of(folder), load_file(folder.checkpoints / "checkpoint-1" / "adapter_model.safetensors")
    )

"""train.deterministic."""

import os

import pytest
import torch

from finetune.errors import TrainingError
from finetune.training import run
from finetune.training.determinism import VARIABLES, deterministic
from tests.support.messages import hearing
from tests.support.recipes import MakeRecipe


@pytest.mark.parametrize("asked", [True, False])
def test_a_training_computes_with_sums_in_one_order(asked: bool, make_recipe: MakeRecipe) -> None:
    """While it trains torch's deterministic algorithms are on, where they are asked for; afterwards all is
    as before."""
    found: list[bool] = []

    def look(line: str) -> None:
        if line.startswith("rehearsed"):
            found.append(torch.are_deterministic_algorithms_enabled())
            assert all(name in os.environ for name in VARIABLES) == asked

    with hearing(look):
        run.start(make_recipe(train={"deterministic": asked, "max_steps": 1}), name="one", command="test")
    assert found == [asked]
    assert not torch.are_deterministic_algorithms_enabled()
    assert not any(name in os.environ for name in VARIABLES)


def test_an_operation_without_one_order_is_told() -> None:
    """In place of a bug's traceback."""
    places = torch.zeros(3, dtype=torch.long)
    with pytest.raises(TrainingError, match=r"train\.deterministic: put_"), deterministic(True):
        torch.zeros(3).put_(places, torch.ones(3))


def test_another_error_goes_on() -> None:
    """As it is."""
    with pytest.raises(RuntimeError, match="shape"), deterministic(True):
        torch.zeros(3).view(2)

"""Which optimizers an engine refuses, before anything loads."""

import pytest

from finetune.engines.base import Engine
from finetune.engines.registry import of_several
from finetune.recipe.schema.optimizers import OPTIMIZERS
from tests.support.recipes import MakeRecipe

CUT_UP = {"fsdp2": {"adafactor", "adagrad", "lion", "adamw_8bit", "muon", "polora", "schedule_free_adamw"}}
"""bitsandbytes' can't compute with DTensor, nor can Adafactor; Adagrad's state can't be saved."""
FLAT = {"adafactor", "muon", "polora", "schedule_free_adamw"}
"""Rows, columns and matrices are not those of ZeRO's flat shares, and averages have no way into the model."""
OFFLOADED = set(OPTIMIZERS) - {"adamw"}


@pytest.mark.parametrize("engine", of_several(), ids=lambda engine: engine.name)
def test_an_optimizer_that_can_not_work_is_refused_by_name(engine: Engine, make_recipe: MakeRecipe) -> None:
    """The others are not, and the message says what to take."""
    expected = CUT_UP.get(engine.name, FLAT if engine.takes_over else set())
    expected = OFFLOADED if engine.offloads else expected
    problems = {name: engine.problem(make_recipe(train={"optimizer": name})) for name in OPTIMIZERS}
    assert {name for name, problem in problems.items() if problem is not None} == expected
    for name in expected:
        assert str(problems[name]).startswith(f"train.optimizer: {name}: ")
        assert "Take adamw" in str(problems[name])

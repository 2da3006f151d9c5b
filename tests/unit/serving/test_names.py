"""Which models are served under which names."""

from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.serving.models import name_targets


def test_the_base_answers_beside_what_was_made_of_it(models: dict[str, Path]) -> None:
    """As `base`, after the others, without the adapter."""
    found = name_targets([f"tuned={models['tuned']}"], with_base=True)
    assert [(name, target.adapter) for name, target in found.items()] == [
        ("tuned", models["tuned"]),
        ("base", None),
    ]
    assert found["base"].model.base == str(models["lamps"])


def test_two_models_of_the_name_base_are_refused(models: dict[str, Path]) -> None:
    """One message, before any is loaded."""
    with pytest.raises(FinetuneError, match="two models have the name 'base'"):
        name_targets([f"base={models['tuned']}"], with_base=True)


def test_a_model_that_was_made_of_nothing_known_has_no_base(models: dict[str, Path]) -> None:
    """One message."""
    with pytest.raises(FinetuneError, match="nothing says what it was made from: name its base itself"):
        name_targets([f"lamps={models['lamps']}"], with_base=True)

"""Rules that tie keys of a recipe together. Pure: no file is looked at."""

from finetune.recipe.given import Given
from finetune.recipe.rules import data, evaluation, optimization, sweep, training
from finetune.recipe.rules.objective import objective_fits
from finetune.recipe.rules.tracking import tracking_fits
from finetune.recipe.schema import Recipe

RULES = (
    *training.RULES,
    *optimization.RULES,
    *data.RULES,
    *evaluation.RULES,
    objective_fits,
    *sweep.RULES,
    tracking_fits,
)


def problems_of(recipe: Recipe, given: Given) -> list[tuple[str, str]]:
    """Everything that the rules have against a recipe, as (dotted path, message).

    `given` holds the dotted paths that the user wrote: a knob that can't be honoured is only refused where
    someone asked for it. A path in `given` counts as set even where the recipe holds no value for it (it was
    wrong and is reported already).
    """
    return [problem for rule in RULES for problem in rule(recipe, given)]

"""The objectives: what is learned from a row, a file each. Importing them loads no torch.

To add one is to write its file and name it here, or to extend the tuple: `objectives.OBJECTIVES += (Mine,)` before a recipe is
loaded, in each process that loads it.
"""

from typing import TYPE_CHECKING

from finetune.objectives.base import Objective
from finetune.objectives.classification import Classification
from finetune.objectives.language_modeling import LanguageModeling

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe

__all__ = ["OBJECTIVES", "Classification", "LanguageModeling", "Objective", "objective_of"]

OBJECTIVES: tuple[type[Objective], ...] = (LanguageModeling, Classification)


def objective_of(recipe: "Recipe") -> Objective:
    """The recipe's objective. Raises LookupError for a kind that isn't in OBJECTIVES, which the recipe's rules refuse."""
    for objective in OBJECTIVES:
        if objective.kind == recipe.objective.kind and objective.fits(recipe.model):
            return objective(recipe)
    raise LookupError(f"no objective is called {recipe.objective.kind!r}")

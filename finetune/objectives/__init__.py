"""The objectives: what is learned from a row, a file each. Importing them loads no torch.

To add one is to write its file and name it here, or to extend the tuple: `objectives.OBJECTIVES += (Mine,)`
before a recipe is loaded, in each process that loads it.
"""

from typing import TYPE_CHECKING

from finetune.objectives.base import Objective
from finetune.objectives.classification import Classification
from finetune.objectives.distillation import Distillation
from finetune.objectives.dpo import Dpo, Hinge, Ipo, Robust
from finetune.objectives.grpo import Grpo
from finetune.objectives.kto import Kto
from finetune.objectives.language_modeling import LanguageModeling
from finetune.objectives.reference_free import Cpo, Orpo, Simpo
from finetune.objectives.reward import Reward

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe

__all__ = [
    "OBJECTIVES",
    "Classification",
    "LanguageModeling",
    "Objective",
    "kind_of",
    "nearest_to",
    "objective_of",
]

OBJECTIVES: tuple[type[Objective], ...] = (
    LanguageModeling, Distillation, Classification, Dpo, Ipo, Hinge, Robust, Orpo, Simpo, Cpo, Kto, Reward,
    Grpo,
)  # fmt: skip


NEAREST: tuple[tuple[tuple[str, ...], str], ...] = (
    (("kto", "bco", "apo_zero_unpaired"), "kto"),
    (("apo", "nca", "aot", "discopop"), "dpo"),
    (("process_reward_model", "prm"), "reward"),
    (("sppo",), "ipo"),
    (("exo",), "robust"),
    (("alphapo",), "simpo"),
    (("gkd", "kd"), "distill"),
    (("ppo", "reinforce", "rloo", "dapo", "gspo", "cispo", "dr_grpo"), "grpo"),
    (("sft", "ebft"), "supervised"),
)
"""Beginnings of the names of other tools' losses that aren't here, and the kind that is nearest."""


def nearest_to(name: str) -> str | None:
    """The kind of objective that is nearest to another tool's loss; None where nothing is known of it."""
    return next((kind for theirs, kind in NEAREST if name.lower().startswith(theirs)), None)


def kind_of(recipe: "Recipe") -> type[Objective] | None:
    """The objective that the recipe names; None where none has its kind, or is for such a model."""
    kind = recipe.objective.kind
    return next((found for found in OBJECTIVES if found.kind == kind and found.fits(recipe.model)), None)


def objective_of(recipe: "Recipe") -> Objective:
    """The recipe's objective. Raises LookupError where there is none, which the recipe's rules refuse."""
    found = kind_of(recipe)
    if found is None:
        raise LookupError(f"no objective is called {recipe.objective.kind!r}")
    return found(recipe)

"""Rules for the objective section: each kind has its own keys, and its own needs of the rest of the
recipe."""

from typing import Any

from finetune import objectives
from finetune.recipe.given import Given, RuleProblem
from finetune.recipe.reading.explain import either, mistakes_of, not_among
from finetune.recipe.schema import Recipe


def with_objective_defaults(recipe: Recipe) -> Recipe:
    """A valid recipe in which the keys of its kind of objective that were not written have their defaults,
    with the head that the objective brings."""
    found = objectives.kind_of(recipe)
    if found is None:
        return recipe
    options = found.section.model_validate(recipe.objective.options).model_dump()
    section = recipe.objective.model_validate({"kind": recipe.objective.kind, **options})
    changed: dict[str, Any] = {"objective": section}
    if found.brought_head is not None:
        changed["model"] = recipe.model.model_copy(update={"head": found.brought_head})
    return recipe.model_copy(update=changed)


def objective_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """The kind is known and fits the model, its keys are its own, and the rest of the recipe goes with it."""
    kind, known = recipe.objective.kind, [objective.kind for objective in objectives.OBJECTIVES]
    if kind not in known:
        nearest, expected = objectives.nearest_to(kind), list(dict.fromkeys(known))
        yield (
            "objective.kind",
            f"{kind} is none of the objectives here ({either(expected)}); the nearest is {nearest}"
            if nearest
            else not_among(kind, expected),
        )
        return
    found = objectives.kind_of(recipe)
    if found is None:
        brings = any(one.kind == kind and one.brought_head for one in objectives.OBJECTIVES)
        what = "brings its own head" if brings else "learns from a model that predicts tokens"
        yield "model.head", f"objective {kind} {what}; remove this key"
        return
    mistakes = list(mistakes_of(found.section, recipe.objective.options, ("objective",), beside="kind"))
    yield from mistakes
    if not mistakes:
        yield from found(recipe).problems(given)

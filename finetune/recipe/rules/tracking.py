"""Rules for the tracking section: what each tracker takes."""

from finetune.recipe.given import Given, RuleProblem, asked
from finetune.recipe.schema import Recipe
from finetune.recipe.tracking import TAKEN_BY


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def tracking_fits(recipe: Recipe, given: Given) -> RuleProblem:
    """Trackers that go together, and keys that one of them takes."""
    tracking = recipe.tracking
    names = tracking.trackers
    these = f"this one is {names[0]}" if len(names) == 1 else f"these are {' and '.join(names)}"
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"tracking.tracker.{index}", f"{name} is named twice"
        elif name == "none" and len(names) > 1:
            yield f"tracking.tracker.{index}", "none stands alone; remove it, or the others"
    for key, takers in TAKEN_BY.items():
        if asked(recipe, given, f"tracking.{key}") and not {*takers} & {*names}:
            yield f"tracking.{key}", f"for {_listed(takers)} only; {these}"
    if tracking.upload_adapter and recipe.adapter.method == "full":
        yield (
            "tracking.upload_adapter",
            "adapter.method full trains all weights: there is no adapter to upload",
        )

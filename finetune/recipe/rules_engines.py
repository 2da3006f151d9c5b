"""What a recipe asks for that a way of sharding can't do; finetune/launch/matrix.py has methods and precisions."""

from finetune.recipe.schema import Recipe

WHOLE_MODEL = "Take ddp, zero1 or zero2"


def engine_problem(recipe: Recipe, engine: str) -> str | None:
    """Why this recipe can't be trained with an engine (single, ddp, zero1 ... fsdp2), and what to do; None where it can."""
    return model_problem(recipe, engine) or _watching_problem(recipe, engine)


def model_problem(recipe: Recipe, engine: str) -> str | None:
    """The same for what is trained, whatever is measured meanwhile."""
    if recipe.model.new_tokens and engine.startswith("zero3"):
        return (
            "model.new_tokens: peft gathers an embedding's rows under ZeRO-3 with CUDA's calls alone, which was never shown to "
            "work here. Take fsdp2, zero2 or ddp."
        )
    if recipe.model.head is not None and engine not in ("single", "cpu", "ddp"):
        return "model.head: a classification head is shown in one process and with ddp alone. Take ddp."
    return None


def _watching_problem(recipe: Recipe, engine: str) -> str | None:
    """The same for what is measured and written while it is trained."""
    cut_up = engine.startswith(("zero3", "fsdp2"))
    if recipe.tracking.samples is not None and cut_up:
        return (
            f"tracking.samples: one process writes them, and none holds a whole model. {WHOLE_MODEL}, or leave the samples out."
        )
    if recipe.evaluate.metrics and cut_up:
        return (
            f"evaluate.metrics: no process holds a whole model to measure them with. {WHOLE_MODEL}; or train with "
            "evaluate.metrics='[]', and measure the finished run: finetune evaluate RUN RECIPE."
        )
    return None

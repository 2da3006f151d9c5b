"""What a recipe asks for that a way of sharding can't do; finetune/engines/launch/matrix.py has methods and precisions."""

from finetune.recipe.schema import Recipe


def engine_problem(recipe: Recipe, engine: str) -> str | None:
    """Why this recipe can't be trained with an engine (single, ddp, zero1 ... fsdp2), and what to do; None where it can."""
    if recipe.model.new_tokens and engine.startswith("zero3"):
        return (
            "model.new_tokens: peft gathers an embedding's rows under ZeRO-3 with CUDA's calls alone, which was never shown to "
            "work here. Take fsdp2, zero2 or ddp."
        )
    return None

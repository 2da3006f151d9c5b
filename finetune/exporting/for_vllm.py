"""Whether what a recipe trains can be served by vLLM, known before it is trained. Loads no torch."""

from collections.abc import Iterator

from finetune.errors import Problem, RecipeError
from finetune.models.architectures.base import EMBEDDING, last_part
from finetune.recipe.load import LoadedRecipe

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
INSTEAD = "serve the merged model (finetune merge)"


def check_for_vllm(loaded: LoadedRecipe) -> list[str]:
    """What to know of serving the recipe's result with vLLM, a sentence each.

    Raises RecipeError, each problem at its line, where vLLM could not load the adapter.
    """
    problems = [Problem(loaded.origins.get(key, ""), key, message) for key, message in _problems(loaded)]
    if problems:
        raise RecipeError(problems)
    adapter = loaded.recipe.adapter
    if adapter.method == "full":
        return ["vLLM serves model/ as it is: vllm serve RUN/model"]
    least = least_max_rank(max(adapter.saved_ranks))
    sentences = [f"finetune export RUN --format vllm --output DIR, and --max-lora-rank {least} or more"]
    if adapter.use_dora:
        sentences.append(
            "vLLM has no DoRA: the export is the nearest LoRA of a rank that you choose, not the same update"
        )
    return sentences


def least_max_rank(rank: int) -> int:
    """The smallest --max-lora-rank for adapters of a rank."""
    return next(one for one in RANKS if one >= rank)


def _problems(loaded: LoadedRecipe) -> Iterator[tuple[str, str]]:
    recipe = loaded.recipe
    if recipe.model.head:
        yield "model.head", f"vLLM takes no adapter with a head; {INSTEAD}"
    if recipe.adapter.method == "full":
        return
    if recipe.adapter.by_peft:
        yield "adapter.method", f"vLLM takes LoRA, and this is {recipe.adapter.method}; {INSTEAD}"
        return
    if (saved := max(recipe.adapter.saved_ranks)) > RANKS[-1]:
        yield (
            "adapter.rank",
            f"it is saved with {saved}, and vLLM takes up to {RANKS[-1]}; lower it, or {INSTEAD}",
        )
    if recipe.adapter.modules_to_save:
        yield (
            "adapter.modules_to_save",
            f"vLLM refuses adapters with whole modules; remove this, or {INSTEAD}",
        )
    if last_part(EMBEDDING) in map(last_part, recipe.adapter.target_modules):
        yield (
            "adapter.target_modules",
            f"vLLM takes LoRA on linear layers alone; remove {last_part(EMBEDDING)}, or {INSTEAD}",
        )
    if recipe.model.rope_scaling is not None:
        yield "model.rope_scaling", f"vLLM takes the base's positions; {INSTEAD}"
    if recipe.model.new_tokens:
        yield "model.new_tokens", f"vLLM takes no new tokens from an adapter; {INSTEAD}"

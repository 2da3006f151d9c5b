"""finetune sample: answers to a recipe's prompts, those that score well kept as rows."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import (
    AllowCodeOption,
    BaseOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    allowed_code,
    out,
    print_json,
    progress_line,
)


def sample(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option(help="The file of JSON lines to write; it must not exist.")],
    overrides: OverridesArgument = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL_OR_RUN", help="What answers; when absent the recipe's own base."),
    ] = None,
    base: BaseOption = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt.")] = 8,
    keep: Annotated[
        str,
        typer.Option(
            help="best: each prompt's answer with the highest score; all; pairs: the highest and the lowest "
            "as a row of format preference."
        ),
    ] = "best",
    score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="What an answer is worth: exact_match, number, rougeL, pass ...; given several times the "
            "sum. When absent the recipe's objective.rewards.",
        ),
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(help="The score that an answer is kept from; of a pair, the chosen one's.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="More than 0.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    min_p: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    seed: Annotated[int, typer.Option(help="The same answers for the same seed.")] = 0,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a recipe's prompts, and keep the answers that score well.

    What is written is data for a next run, each row with its model, seed and score. The same command goes
    on after it was interrupted.
    """
    from finetune import api

    found = api.sample(
        recipe,
        output,
        overrides or [],
        model=model,
        base=base,
        scores=score,
        count=n,
        keep=keep,
        at_least=at_least,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        allow_code=allowed_code(allow_code),
        progress=progress_line("prompts", quiet=as_json),
    )
    if as_json:
        print_json(found.as_dict())
        return
    for name, value in found.lines():
        out(f"{name:<8} {value}")

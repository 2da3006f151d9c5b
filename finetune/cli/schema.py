"""finetune schema: every key of a recipe, for editors and for readers."""

from typing import Annotated

import typer

from finetune.cli.common import out, print_json


def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a page of Markdown instead: docs/recipe_reference.md.")
    ] = False,
) -> None:
    """Print the recipe's JSON schema."""
    from finetune.recipe.reference import recipe_reference, recipe_schema

    if markdown:
        out(recipe_reference().rstrip("\n"))
    else:
        print_json(recipe_schema())

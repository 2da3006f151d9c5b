"""The manual's table of model families; finetune/manual.py writes it."""

from collections.abc import Callable

from data_prep.text import markdown_table
from finetune.models import architectures


def families_table() -> str:
    """A row of each family."""
    rows = [
        [
            f"`{family.model_type}`",
            family.examples,
            ", ".join(f"`{name}`" for name in family.linear_layers),
            f"`{family.gguf.name}`",
        ]
        for family in architectures.FAMILIES
    ]
    return markdown_table(["`model_type`", "models", "linear layers", "llama.cpp's name"], rows)


TABLES: dict[str, Callable[[], str]] = {"families": families_table}

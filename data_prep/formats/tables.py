"""The manual's tables of formats; finetune/manual.py writes them."""

from collections.abc import Callable

from data_prep import formats
from data_prep.text import markdown_table


def format_table() -> str:
    """A row of each format."""
    rows = [[f"`{form.name}`", form.row] for form in formats.FORMATS]
    return markdown_table(
        ["format", "a row"], [*rows, ["`auto`", "finds out which of these it is, and says why"]]
    )


def column_table() -> str:
    """The columns of the formats that name theirs."""
    rows = [
        [
            f"`{form.name}`",
            " or ".join(map(_together, form.columns.required)),
            ", ".join(map(_code, form.columns.optional)),
        ]
        for form in formats.FORMATS
        if not form.reads_all
    ]
    return markdown_table(["format", "columns that a row needs", "and may have"], rows)


def _together(names: tuple[str, ...]) -> str:
    return " + ".join(map(_code, names))


def _code(name: str) -> str:
    return f"`{name}`"


TABLES: dict[str, Callable[[], str]] = {"formats": format_table, "columns": column_table}

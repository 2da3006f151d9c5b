"""The table of formats in docs/data.md: python -m data_prep.formats.table"""

from data_prep import formats


def format_table() -> str:
    """A line for each format, in Markdown."""
    rows = [(f"`{form.name}`", form.row) for form in formats.FORMATS]
    cells = [("format", "a row"), ("---", "---"), *rows, ("`auto`", "finds out which of these it is, and says why")]
    return "\n".join(f"| {name} | {row} |" for name, row in cells)


if __name__ == "__main__":
    print(format_table())

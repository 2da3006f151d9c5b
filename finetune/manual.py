"""The manual's tables, made from the registries. Torch-free.

python -m finetune.manual FILE.md ...    # write the tables of these pages again, between their marks
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from data_prep.formats import tables as format_tables
from finetune.engines import tables as engine_tables
from finetune.models.architectures import tables as family_tables
from finetune.scoring.metrics import tables as metric_tables

TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "data": format_tables.TABLES,
    "engines": engine_tables.TABLES,
    "models": family_tables.TABLES,
    "scoring": metric_tables.TABLES,
}
"""The two names in a page's marks -> what is between them."""

MARKS = re.compile(r"(<!-- (\w+): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """A page of the manual with its tables as they are now."""
    return MARKS.sub(lambda found: f"{found[1]}{TABLES[found[2]][found[3]]()}\n{found[4]}", page)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_tables(path.read_text()))

"""The manual's tables are those that the registries make."""

from pathlib import Path

import pytest

from finetune.manual import MARKS, TABLES, with_tables

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "accelerate_configs/README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_the_manual_has_the_tables_as_they_are(page: str) -> None:
    """python -m finetune.manual writes them again."""
    text = (ROOT / page).read_text()
    assert with_tables(text) == text


def test_each_table_is_on_a_page() -> None:
    """None is made for nobody."""
    on_pages = {(found[2], found[3]) for page in PAGES for found in MARKS.finditer((ROOT / page).read_text())}
    assert on_pages == {(room, name) for room, tables in TABLES.items() for name in tables}

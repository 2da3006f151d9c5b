"""The manual's examples, run as they are printed."""

import re
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parents[2] / "docs"


def example_of(page: str, language: str = "python") -> str:
    """The first example of docs/PAGE.md in a language."""
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert found is not None, f"docs/{page}.md has no example in {language}"
    return found[1]


def module_of(page: str) -> ModuleType:
    """The first Python example of a page as a module, by the page's name."""
    module = ModuleType(page)
    sys.modules[page] = module  # dataclasses and pydantic look their module up
    exec(compile(example_of(page), str(DOCS / f"{page}.md"), "exec"), module.__dict__)  # noqa: S102 - the manual's own
    return module


def table_of(page: str) -> str:
    """The rows of a page's tables."""
    return "\n".join(line for line in (DOCS / f"{page}.md").read_text().splitlines() if line.startswith("| "))

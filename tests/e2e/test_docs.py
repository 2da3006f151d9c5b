"""The manual is true: its links lead somewhere, its files exist, its messages are the code's, its Python
runs."""

import ast
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "accelerate_configs" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LONGEST_README = 130
RECIPE = """
model: {{base: {base}}}
data:
  train: [{{path: rows.jsonl, format: alpaca}}]
  evaluation: {{fraction: 0.25}}
  max_length_tokens: 64
train: {{precision: fp32, learning_rate: 1e-2, epochs: 1}}
evaluate: {{metrics: [loss, exact_match], max_new_tokens: 4}}
tracking: {{tracker: none}}
"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link is a file or folder of this repository, and each anchor a heading of it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    """A path of the repository that a page names in code is there."""
    folders = "|".join(
        ("tests", "finetune", "data_prep", "benchmarks", "recipes", "examples", "docs", "accelerate_configs")
    )
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        for path in re.findall(rf"(?<![\w/.$-])(?:{folders})/[\w./*-]+", code):
            assert list(ROOT.glob(path.rstrip("/."))) or list(ROOT.glob(f"{path}*")), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_every_page_is_in_the_readme() -> None:
    """Or, of those about extending, in the page that the README names."""
    links = (ROOT / "README.md").read_text() + (ROOT / "docs" / "extending.md").read_text().replace(
        "](", "](docs/"
    )
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in links] == []


def test_the_manual_is_a_site(tmp_path: Path) -> None:
    """mkdocs builds it without a warning: no link that leads nowhere, no page outside the menu (mkdocs.yml is
    strict)."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def texts_of_the_code() -> Iterator[str]:
    """Each text in the sources; what is put in for a value is a line break."""
    for room in ("finetune", "data_prep"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_messages_are_those_of_the_code() -> None:
    """Each part of a message in docs/troubleshooting.md, between its values, is in a text of the code."""
    texts = list(texts_of_the_code())
    rows = re.findall(r"^\| (.+?) \| .+? \| .+ \|$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    parts = {
        part.strip()
        for row in rows
        for message in re.findall(r"`([^`]+)`", row)
        if message != "FILE:LINE:COLUMN"
        for part in message.split("...")
    }
    parts = {part for part in parts if len(part) > 3}
    assert len(parts) > 80
    assert sorted(part for part in parts if not any(part in text for text in texts)) == []


def test_the_python_of_the_page_runs(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/python.md, block by block, with a tiny model's recipe in place of the reader's own."""
    rows = [
        {"instruction": f"Say {colour} {index}.", "output": colour}
        for index in range(10)
        for colour in ("red", "green")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.yaml").write_text(RECIPE.format(base=tiny_base))
    monkeypatch.chdir(tmp_path)
    toolkit = logging.getLogger("finetune")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.M | re.S)
    assert len(blocks) > 10
    namespace: dict[str, Any] = {"__name__": "page"}
    try:
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"docs/python.md, block {number}", "exec"), namespace)  # noqa: S102 - a page of this repository
    finally:
        toolkit.setLevel(logging.NOTSET)
    assert len(namespace["chat"].messages) == 5


def test_the_readme_s_python_is_valid() -> None:
    """Each block of each page can be compiled; README's first one trains the quickstart."""
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
            compile(block, page.name, "exec")
    assert 'finetune.train("quickstart"' in (ROOT / "README.md").read_text()

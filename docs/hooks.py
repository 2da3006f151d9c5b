"""What `mkdocs build` needs beside the pages: a site is docs/ and what its pages link to elsewhere in the
repository.

Links are written for the repository, where a page of docs/ names ../README.md. In the site docs/ is the top,
and README.md, the examples and the like keep their paths, so a link is written anew for where its two ends
are there.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "accelerate_configs/README.md")
"""Pages of the site that are not in docs/."""
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of OUTSIDE, and each file that a page links to."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / path for path in OUTSIDE)]
    linked = {
        _target(page.relative_to(ROOT).as_posix(), link)
        for page in pages
        for link in LINK.findall(page.read_text())
    }
    for path in sorted({*OUTSIDE, *linked}):
        if files.get_file_from_path(_in_site(path)) is None and (ROOT / path).is_file():
            files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text with its links as they are in the site."""
    source: str = page.file.src_uri
    path = source if source in OUTSIDE else f"docs/{source}"
    here = posixpath.dirname(source) or "."
    return LINK.sub(lambda found: posixpath.relpath(_in_site(_target(path, found[1])), here), markdown)


def _target(page: str, link: str) -> str:
    """The path in the repository that a page's link leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _in_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix("docs/")

"""A headless Chromium for tests of pages: what a page becomes in it, and what its console says."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser is installed (looked for {', '.join(NAMES)})"
)

SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--disable-sync", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--no-first-run", "--enable-logging=stderr", "--v=0",
)  # fmt: skip
CONSOLE_LINE = re.compile(r"\bCONSOLE\b.*?\] ?(.*)")
SECONDS = 60


@dataclass(frozen=True)
class Opened:
    """A page after a browser has loaded it."""

    document: str
    """The document as HTML, as the browser understood it."""
    console: list[str]
    """What the browser or the page wrote to the console."""


def open_page(page: Path, profile: Path) -> Opened:
    """Load a local page in a browser with a fresh profile."""
    command = [str(BROWSER), *SWITCHES, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=True
    )
    return Opened(
        done.stdout, [found[1] for line in done.stderr.splitlines() if (found := CONSOLE_LINE.search(line))]
    )


def take_picture(address: str, profile: Path, picture: Path) -> None:
    """A screenshot of a page, once its scripts have had 20 seconds of their own time."""
    waiting = ("--virtual-time-budget=20000", "--window-size=1300,900", f"--screenshot={picture}")
    command = [str(BROWSER), *SWITCHES, *waiting, f"--user-data-dir={profile}", address]
    subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)

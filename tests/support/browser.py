"""A headless Chromium for tests of pages: what a page becomes in it, and what its console says."""

import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

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


@dataclass
class Tab:
    """A page in a browser that can be used, by Chromium's own protocol (DevTools)."""

    _connection: ClientConnection
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    requested: list[str] = field(default_factory=list)
    """The addresses that it has asked."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._connection.recv(SECONDS))
            if told.get("method") == "Network.requestWillBeSent":
                self.requested.append(told["params"]["request"]["url"])
            if told.get("id") == number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result

    def run(self, script: str) -> Any:
        """The value of a script's last expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a script's value is true."""
        ends = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < ends, f"{condition}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)

    def write(self, selector: str, text: str) -> None:
        """Click a field and type into it, as a person does."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13
            )


@contextmanager
def opened_tab(address: str, profile: Path) -> Iterator[Tab]:
    """A page that is open in a browser while this lasts."""
    command = [
        str(BROWSER),
        *SWITCHES,
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            told = profile / "DevToolsActivePort"
            ends = time.monotonic() + SECONDS
            while not told.is_file() or not told.read_text().count("\n"):
                assert time.monotonic() < ends, "the browser does not start"
                time.sleep(0.02)
            port = told.read_text().splitlines()[0]
            pages = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
            target = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            with connect(target, max_size=None) as connection:
                tab = Tab(connection)
                tab.call("Network.enable")
                tab.call("Page.navigate", url=address)
                tab.wait_for("location.href != 'about:blank' && document.readyState == 'complete'")
                yield tab
        finally:
            browser.terminate()

"""`finetune runs ui`: Trackio's own dashboard as a real process, in a real browser, and for strangers."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.browser import needs_browser, take_picture

SCRIPT = """
from pathlib import Path
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.tracking.start import start_tracker
tracker = start_tracker("trackio", TrackingSection(project="curves"), "run-a", {}, folder=Path("."))
for step in range(1, 30):
    tracker.log({"train/loss": 3 - step / 10}, step)
tracker.finish("finished")
"""


@contextlib.contextmanager
def dashboard(folder: Path, *options: str) -> Iterator[str]:
    """A dashboard over one run with a curve, as a process; its address as it is printed."""
    environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio")}
    subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=folder, check=True, capture_output=True
    )
    words = [sys.executable, "-m", "finetune", "runs", "ui", "--project", "curves", *options]
    server = subprocess.Popen(
        words, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield _address_of(server)
    finally:
        server.terminate()
        server.wait(timeout=30)


@needs_browser
def test_the_dashboard_shows_the_curve(tmp_path: Path) -> None:
    """On this machine's own address only, on the next port where one is taken, with the run's curve across
    the picture."""
    image = pytest.importorskip("PIL.Image", reason="pillow comes with matplotlib")
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it: as good
            taken.bind(("127.0.0.1", 7860))
            taken.listen()
        with dashboard(tmp_path) as address:
            assert address.startswith("http://127.0.0.1:")
            assert "7860" not in address
            take_picture(address, tmp_path / "profile", tmp_path / "page.png")
    pixels = np.asarray(image.open(tmp_path / "page.png").convert("RGB"), dtype=int)[60:420, 340:]
    rows, columns = np.nonzero(pixels.max(axis=2) - pixels.min(axis=2) > 40)
    # Between the page's head and the legend the curve is the one thing that has a colour; it falls from left
    # to right.
    assert len(set(columns)) > 150
    assert rows[columns == columns.min()].mean() + 100 < rows[columns == columns.max()].mean()


def test_the_dashboard_answers_its_user_alone(tmp_path: Path) -> None:
    """No page, no file and no metric without the token, for another Host, or to another page; what it loads
    has a cookie."""
    with dashboard(tmp_path) as address:
        base, token = address.split("?")[0], address.rpartition("=")[2]
        port = base.rstrip("/").rpartition(":")[2]
        question = {"url": f"{base}api/get_runs_for_project", "json": {"project": "curves"}}
        with httpx.Client(trust_env=False, timeout=30) as stranger:
            refused = [
                *(
                    stranger.get(base + path)
                    for path in ("", "version", "file?path=/etc/passwd", "assets/x.js", "?write_token=x")
                ),
                stranger.post(**question),
                stranger.get(base, cookies={"finetune_dashboard": token[:-1]}),
                *(
                    stranger.get(address, headers={"Host": host})
                    for host in ("evil.example", f"evil.example:{port}", f"::1:{port}")
                ),
                *(
                    stranger.get(address, headers={"Origin": page})
                    for page in ("http://evil.example", "http://127.0.0.1:1", "null")
                ),
            ]
        assert [(answer.status_code, "run-a" in answer.text) for answer in refused] == [(403, False)] * len(
            refused
        )
        with httpx.Client(trust_env=False, timeout=30) as user:
            assert user.post(**question, headers={"X-Trackio-Write-Token": token}).status_code == 200
            page = user.get(address)
            assert page.status_code == 200
            assert {"HttpOnly", "SameSite=Strict"} <= set(page.headers["set-cookie"].split("; "))
            own = user.post(**question, headers={"Origin": base.rstrip("/")})
            assert own.status_code == 200
            assert "run-a" in own.text
            # Through a tunnel, whose other end has another port.
            assert (
                user.post(
                    **question, headers={"Host": "localhost:9", "Origin": "http://localhost:9"}
                ).status_code
                == 200
            )


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    """One message, and no other port in its place."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "finetune", "runs", "ui", "--port", str(port)]
        environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
        done = subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 is taken: give another one with --port" in done.stderr


def _address_of(server: subprocess.Popen[str]) -> str:
    """Where the dashboard says that it is, once it answers."""
    assert server.stdout is not None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        line = server.stdout.readline()
        assert line or server.poll() is None, "the dashboard ended"
        if "http://" in line:
            address = line[line.index("http://") :].split()[0].split("\x1b")[0]
            assert httpx.get(address, timeout=30).status_code == 200
            return address
    raise AssertionError("the dashboard did not start")

"""`finetune runs ui`: Trackio's own dashboard in a real browser."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.browser import needs_browser, take_picture

SCRIPT = """
from pathlib import Path
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.trackers import start_tracker
tracker = start_tracker(TrackingSection(project="curves"), "run-a", {}, folder=Path("."), say=print)
for step in range(1, 30):
    tracker.log({"train/loss": 3 - step / 10}, step)
tracker.finish()
"""


@needs_browser
def test_the_dashboard_shows_the_curve(tmp_path: Path) -> None:
    """On this machine's own address only, on the next port where one is taken, with the run's curve across the picture."""
    image = pytest.importorskip("PIL.Image", reason="pillow comes with matplotlib")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, check=True, capture_output=True)
    words = [sys.executable, "-m", "finetune", "runs", "ui", "--project", "curves"]
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it: as good
            taken.bind(("127.0.0.1", 7860))
            taken.listen()
        server = subprocess.Popen(
            words, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            address = _address_of(server)
            assert address.startswith("http://127.0.0.1:")
            assert "7860" not in address
            take_picture(address, tmp_path / "profile", tmp_path / "page.png")
        finally:
            server.terminate()
            server.wait(timeout=30)
    pixels = np.asarray(image.open(tmp_path / "page.png").convert("RGB"), dtype=int)[60:420, 340:]
    rows, columns = np.nonzero(pixels.max(axis=2) - pixels.min(axis=2) > 40)
    # Between the page's head and the legend the curve is the one thing that has a colour; it falls from left to right.
    assert len(set(columns)) > 150
    assert rows[columns == columns.min()].mean() + 100 < rows[columns == columns.max()].mean()


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

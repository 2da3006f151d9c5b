"""A real MLflow server: of a full `mlflow`, which the toolkit's environment doesn't hold (its own pins are
others), in an environment of its own."""

import socket
import subprocess
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

SECONDS = 120


def own_database(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's client of a database in a working folder."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/own.db")
    return mlflow.MlflowClient()


def answers(port: int) -> bool:
    """Whether the server is up."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Its address; the test is skipped where mlflow can't be installed."""
    program = folder / "environment" / "bin" / "mlflow"
    if not program.exists():
        venv.create(folder / "environment", with_pip=True)
        pip = [program.with_name("python"), "-m", "pip", "install", "--quiet", "mlflow>=3.17,<4"]
        if subprocess.run(pip, check=False, capture_output=True).returncode:
            pytest.skip("mlflow could not be installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        folder / "files",
    ]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([*command, *store], cwd=folder, stdout=log, stderr=log)
    address, since = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while not answers(port):
            said = (folder / "server.log").read_text()
            assert server.poll() is None, said
            assert time.monotonic() - since < SECONDS, said
            time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(30)

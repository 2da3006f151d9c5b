"""finetune serve, as a process: what it says, what it refuses, how it ends."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import finetune
from finetune.errors import FinetuneError
from finetune.serving.server import api_key, listening_socket
from tests.support.cli import ROOT, FinetuneHere

SERVING = re.compile(r"serving (?P<names>.*) on http://127\.0\.0\.1:(?P<port>\d+)")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process once it serves, and its port."""
    command = [sys.executable, "-m", "finetune", "serve", *arguments, "--port", "0"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
    ) as process:
        assert process.stdout is not None
        try:
            found = next(filter(None, map(SERVING.search, process.stdout)))
            yield process, int(found["port"])
        finally:
            process.kill()


def test_sigterm_ends_it_in_order(tiny_base: Path) -> None:
    """It answers until then, and ends with code 0 once what was asked is answered."""
    with serving(f"tiny={tiny_base}") as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = '{"model": "tiny", "prompt": "x", "max_tokens": 200, "stop": ["never"]}'
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        metrics = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            metrics.request("GET", "/metrics")
            if b"finetune_requests_running 1.0" in metrics.getresponse().read():
                break
        metrics.close()
        process.send_signal(signal.SIGTERM)
        assert b'"finish_reason"' in connection.getresponse().read()
        assert process.wait(30) == 0


@pytest.mark.long
def test_a_second_ctrl_c_ends_it_at_once(tiny_base: Path) -> None:
    """In one line."""
    with serving(f"tiny={tiny_base}") as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = (
            '{"model": "tiny", "prompt": "x", "n": 16, "temperature": 2, "stream": true, "stop": ["never"]}'
        )
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        connection.getresponse().readline()
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == "SIGINT: ending at once\n"


def test_a_port_in_use_is_one_message(finetune_here: FinetuneHere, tiny_base: Path) -> None:
    """Exit code 2, before the model is loaded."""
    with listening_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = finetune_here("serve", str(tiny_base), "--port", str(port), code=2)
    assert result.stderr == (
        f"error: port {port} of 127.0.0.1 is in use: end what listens there, or name another with --port.\n"
    )


def test_other_machines_may_ask_with_a_key_only(
    finetune_here: FinetuneHere, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 names the variable that holds it."""
    monkeypatch.delenv("FINETUNE_API_KEY", raising=False)
    result = finetune_here("serve", str(tiny_base), "--host", "0.0.0.0", "--port", "0", code=2)  # noqa: S104
    assert "lets other machines ask: set FINETUNE_API_KEY" in result.stderr


@pytest.mark.parametrize(("key", "found"), [(None, None), ("", None), ("secret", "secret")])
def test_a_key_counts_where_it_is_set(
    monkeypatch: pytest.MonkeyPatch, key: str | None, found: str | None
) -> None:
    """On this machine too."""
    monkeypatch.setenv("FINETUNE_API_KEY", key or "")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert api_key("127.0.0.1", listening) == found


def test_a_key_that_no_header_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a blank, or a letter beyond ASCII."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for key in ("a b", "schlüssel", "a\n"):
            monkeypatch.setenv("FINETUNE_API_KEY", key)
            with pytest.raises(FinetuneError, match="printable ASCII"):
                api_key("127.0.0.1", listening)


def test_a_host_that_is_none_is_refused(finetune_here: FinetuneHere, tiny_base: Path) -> None:
    """By its name."""
    result = finetune_here("serve", str(tiny_base), "--host", "no..host", code=2)
    assert "--host no..host: there is no such name or address" in result.stderr


def test_models_of_one_name_are_refused(finetune_here: FinetuneHere, tiny_base: Path) -> None:
    """With how another name is given; a name that is nothing is refused as everywhere."""
    result = finetune_here("serve", f"a={tiny_base}", f"a={tiny_base}", code=2)
    assert f"two models have the name 'a': give one another, NAME={tiny_base}" in result.stderr
    assert "is not a model or a run" in finetune_here("serve", "nothing-there", code=2).stderr


@pytest.mark.parametrize(("models", "options"), [([], {}), (["x"], {"rows": 0}), (["x"], {"queue": -1})])
def test_what_would_never_answer_is_refused(models: list[str], options: dict[str, int]) -> None:
    """No model, no row, a queue below 0: from Python too."""
    with pytest.raises(FinetuneError, match="expected at least"):
        finetune.serve(models, port=0, **options)

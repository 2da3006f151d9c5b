"""The chat page of models that a command of the board serves, when their server fails."""

import fcntl
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from finetune.board.jobs import Jobs

BEGUN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: {}\n\r\n"
)


@contextmanager
def served(jobs: Jobs, told: bytes) -> Iterator[str]:
    """The name of a command whose server says this to one request, and goes."""
    own = jobs.folder / "0001"
    own.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as server, (own / "process").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = {
            "words": ["serve", "x"],
            "command": "finetune serve x",
            "about": "x",
            "folder": "/",
            "created": 0,
        }
        (own / "job.json").write_text(json.dumps(kept))
        (own / "output.log").write_text(f"serving x on http://127.0.0.1:{server.getsockname()[1]} (a page)\n")

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(told)

        thread = threading.Thread(target=answer)
        thread.start()
        yield own.name
        thread.join()


@pytest.fixture
def ask(user: TestClient) -> Callable[[str], tuple[int, str]]:
    def asked(name: str) -> tuple[int, str]:
        headers = {"Accept": "application/json"}
        answer = user.post(f"/chat/{name}/v1/chat/completions", content=b"{}", headers=headers)
        return answer.status_code, answer.text

    return asked


def test_a_server_that_ends_in_its_answer_is_told_to_the_page(
    ask: Callable[[str], tuple[int, str]], folder: Path
) -> None:
    """As an event of the stream, behind what had come."""
    with served(Jobs(folder / "runs/.board/jobs"), BEGUN) as name:
        status, text = ask(name)
    assert status == 200
    assert text.startswith("data: {}")
    assert (
        json.loads(text.rpartition("data: ")[2])["error"]["message"] == "the server of the models has ended"
    )


def test_what_is_no_answer_is_one_message(ask: Callable[[str], tuple[int, str]], folder: Path) -> None:
    """Of another program on the port, say."""
    with served(Jobs(folder / "runs/.board/jobs"), b"what?\r\n") as name:
        status, text = ask(name)
    assert (status, json.loads(text)["error"]) == (502, "the server of the models does not answer.")

"""A board over an empty folder, asked in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from finetune.board.app import TOKEN, Board
from finetune.board.workspace import Workspace
from tests.unit.board.asking import ADDRESS, COOKIE, SECRET


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def board(folder: Path) -> Iterator[Board]:
    found = Board(Workspace(folder, folder / "runs"))
    yield found
    for job in found.jobs.all():
        if job.process is not None:
            job.stop()


@pytest.fixture
def stranger(board: Board) -> TestClient:
    """Who has no token."""
    return TestClient(board.app(SECRET, cookie=COOKIE), base_url=ADDRESS, follow_redirects=False)


@pytest.fixture
def user(board: Board) -> TestClient:
    """A browser that has opened the address with the token."""
    client = TestClient(
        board.app(SECRET, cookie=COOKIE),
        base_url=ADDRESS,
        follow_redirects=False,
        headers={"Origin": ADDRESS},
    )
    client.get("/", params={TOKEN: SECRET})
    return client

"""Who may use a board."""

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from finetune.board.app import TOKEN
from tests.support.cli import Says
from tests.unit.board.asking import ADDRESS, COOKIE, SECRET

PATHS = ("/", "/recipes/x.yaml", "/jobs/0001", "/runs/x", "/compare", "/chat/0001/", "/board.js")
FORMS = ("/recipes", "/recipes/x.yaml", "/check", "/complete", "/command", "/start", "/jobs/0001/stop")


def test_nothing_is_told_without_the_token(stranger: TestClient) -> None:
    """No page and no script, and nothing is taken, whatever stands for the token."""
    asked = [stranger.get(path) for path in PATHS] + [
        stranger.post(path, headers={"Origin": ADDRESS}) for path in FORMS
    ]
    asked += [stranger.get("/", params={TOKEN: wrong}) for wrong in ("", "x", SECRET[:-1], SECRET + "x", "ü")]
    asked.append(stranger.get("/", headers={"Cookie": f"{COOKIE}={SECRET[:-1]}"}))
    assert {answer.status_code for answer in asked} == {403}
    assert all("finetune board` has printed" in answer.text for answer in asked)


def test_the_token_is_exchanged_for_a_cookie(stranger: TestClient) -> None:
    """Which no script can read and no other site sends; the address that stays in the browser has no token."""
    answer = stranger.get("/", params={TOKEN: SECRET})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=Strict"} < set(answer.headers["set-cookie"].split("; "))
    assert stranger.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:7878"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_another_page_is_refused_with_the_token_too(user: TestClient, headers: dict[str, str]) -> None:
    """By the Host that it was asked as, or the Origin."""
    assert user.get("/", headers=headers).status_code == 403


def test_what_changes_something_must_come_from_the_board_s_page(stranger: TestClient) -> None:
    """A form without an Origin is refused, even with the cookie."""
    stranger.get("/", params={TOKEN: SECRET})
    assert stranger.post("/recipes", data={"name": "x"}).status_code == 403


def test_a_page_may_ask_the_board_alone(user: TestClient) -> None:
    """Its policy names no other host, and no other site may frame it."""
    answer = user.get("/")
    assert "default-src 'none'" in answer.text
    assert "script-src 'self'" in answer.text
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert "https://" not in answer.text


def test_a_port_in_use_is_one_message(says: Says, folder: Path) -> None:
    """Two boards on one port, too: exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = says("board", "--port", str(port))
    assert code == 2
    assert said == (
        f"error: port {port} of 127.0.0.1 is in use: end what listens there, or name another with --port.\n"
    )

"""Who may ask, how much, and what becomes of requests that can't be read."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.serving import app
from tests.support.serving import Running, running

BODY = {"model": "lamps", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 2}
KEY = "the-key"


@pytest.fixture
def client(served: Running) -> Iterator[httpx.Client]:
    with served.client() as found:
        yield found
    served.wait_idle()


@pytest.fixture(scope="module")
def locked(models: dict[str, Path]) -> Iterator[Running]:
    """One row, no queue, and a key."""
    with running([f"lamps={models['lamps']}"], rows=1, queue=0, key=KEY) as server:
        yield server


def ask(client: httpx.Client, **options: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", **({"json": BODY} | options))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "[", "127.0.0.1.evil.example"]
)
def test_a_foreign_host_is_refused(client: httpx.Client, host: str) -> None:
    """A page that a browser was led to believe lies here gets nothing."""
    found = client.get("/v1/models", headers={"Host": host})
    assert found.status_code in (400, 403)
    if found.status_code == 403:
        assert found.json()["error"]["code"] == "foreign_host"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_taken(client: httpx.Client, host: str) -> None:
    """Whatever the port."""
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_page_of_another_site_is_refused(client: httpx.Client, served: Running) -> None:
    """By its Origin; this server's own page may ask."""
    assert ask(client, headers={"Origin": "http://evil.example"}).status_code == 403
    assert ask(client, headers={"Origin": "null"}).status_code == 403
    assert ask(client, headers={"Origin": "http://[::1"}).status_code == 403
    assert ask(client, headers={"Origin": served.address}).status_code == 200


@pytest.mark.parametrize(
    "authorization", [None, "Bearer other", "Bearer", f"Basic {KEY}", KEY, "Bearer the-kéy".encode()]
)
def test_a_wrong_key_is_refused(locked: Running, authorization: Any) -> None:
    """401, in OpenAI's form; the chat page and /health need none."""
    with locked.client() as client:
        headers = {} if authorization is None else {"Authorization": authorization}
        found = ask(client, headers=headers)
        assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/health", headers=headers).status_code == 200
        assert client.get("/", headers=headers).status_code == 200


def test_the_right_key_is_taken(locked: Running) -> None:
    """As OpenAI's clients send it."""
    with locked.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        assert ask(client).status_code == 200


def test_beyond_the_queue_clients_are_told_to_come_back(locked: Running) -> None:
    """429 with Retry-After: here two answers at a time are one too many."""
    with locked.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        locked.server.active = 1
        found = ask(client)
        locked.server.active = 0
        assert (found.status_code, found.headers["Retry-After"]) == (429, "1")
        assert found.json()["error"]["code"] == "queue_full"
        assert ask(client).status_code == 200


def test_what_no_queue_holds_is_refused_for_good(locked: Running) -> None:
    """400: to ask later would be in vain."""
    with locked.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        found = ask(client, json=BODY | {"n": 2})
        assert (found.status_code, found.json()["error"]["param"]) == (400, "n")


def test_a_server_that_ends_takes_no_requests(served: Running, client: httpx.Client) -> None:
    """503, and /health says why."""
    served.server.draining = True
    try:
        assert ask(client).status_code == 503
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
    finally:
        served.server.draining = False


def test_a_large_body_is_refused(client: httpx.Client) -> None:
    """413, before it is read to its end."""
    content = json.dumps(BODY | {"user": "x" * app.LARGEST_BODY_BYTES})
    found = ask(client, json=None, content=content, headers={"Content-Type": "application/json"})
    assert found.status_code == 413


def test_a_body_that_does_not_come_is_given_up(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """408."""
    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)
    connection = http.client.HTTPConnection(served.address.removeprefix("http://"))
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 408
    connection.close()


def test_a_form_is_refused(client: httpx.Client) -> None:
    """415: pages of other sites may send forms without asking."""
    found = ask(client, json=None, data={"model": "lamps"})
    assert (found.status_code, "expected application/json" in found.text) == (415, True)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}", b'{"model": "lamps"}', b'{"model": "lamps", "messages": []}',
        b'{"model": 3, "messages": [{}]}', b'{"model": "lamps", "messages": [{"role": "user"}]}',
        b'{"model": "lamps", "messages": [{"role": "user", "content": 5}]}', b'{"model": "lamps", "messages": "x"}',
        b'{"model": "lamps", "messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 100_000,
        b'{"model": "lamps", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "lamps", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e99}',
        b'{"model": "lamps", "messages": [{"role": "user", "content": "x"}], "max_tokens": true}',
        b'{"model": "lamps", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "lamps", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": 1}]}',
    ],
    ids=range(20),
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(client: httpx.Client, content: bytes) -> None:
    """400, with a message in OpenAI's form."""
    found = ask(client, json=None, content=content, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    assert found.json()["error"]["message"]


def test_other_paths_and_methods_are_told_in_the_same_form(client: httpx.Client) -> None:
    """404 and 405."""
    for status, found in ((404, client.get("/v1/embeddings")), (405, client.get("/v1/completions"))):
        assert (found.status_code, found.json()["error"]["type"]) == (status, "invalid_request_error")
    assert client.get("/v1/models/none").status_code == 404

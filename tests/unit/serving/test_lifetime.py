"""Clients that go, a step that fails, a server that is asked to end; what is counted meanwhile."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serving import SECONDS, Running, running

LONG = {"model": "tuned", "prompt": "x", "temperature": 2, "max_tokens": 250}


@pytest.fixture
def client(served: Running) -> Iterator[httpx.Client]:
    with served.client() as found:
        yield found
    served.wait_idle()


def metrics(client: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_row(served: Running, client: httpx.Client, stream: bool) -> None:
    """Before its answer is whole, which is counted as 499."""
    before = metrics(client).get("finetune_requests_total tuned /v1/completions 499", 0)
    body = LONG | {"stream": stream, "n": 8, "stop": ["never"]}
    address = served.address.removeprefix("http://")
    connection = http.client.HTTPConnection(address)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    while not served.server.worker.running:
        time.sleep(0.001)
    connection.close()
    served.wait_idle()
    assert metrics(client)["finetune_requests_total tuned /v1/completions 499"] == before + 1


def test_a_client_that_goes_in_the_middle_of_its_body(served: Running, client: httpx.Client) -> None:
    """Is counted, and nothing else."""
    name = "finetune_requests_total  /v1/completions 499"
    before = metrics(client).get(name, 0)
    connection = http.client.HTTPConnection(served.address.removeprefix("http://"))
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    time.sleep(0.1)
    connection.close()
    ends = time.monotonic() + SECONDS
    while metrics(client).get(name, 0) == before:
        assert time.monotonic() < ends
    assert metrics(client)[name] == before + 1


def test_a_client_that_takes_nothing_is_let_go(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds no place in the queue any more."""
    monkeypatch.setattr("finetune.serving.answer.SEND_SECONDS", 0.1)
    content = json.dumps(LONG | {"max_tokens": 2}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    parts = [{"type": "http.request", "body": content}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Future()

    async def send(message: Any) -> None:
        await asyncio.Future()

    async def ask() -> None:
        scope: Any = {
            "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers,
        }  # fmt: skip
        async with asyncio.timeout(SECONDS):
            await served.server.app(host="127.0.0.1", key=None)(scope, receive, send)

    asyncio.run(ask())
    assert served.server.active == 0


def test_a_step_that_fails_ends_its_answers_and_no_others(
    served: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 for those, a stream ends with the error, and the server goes on."""
    batch = served.server.models["tuned"].batch

    def fails(*arguments: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patched:
        patched.setattr(batch, "_scores", fails)
        assert client.post("/v1/completions", json=LONG).status_code == 500
        assert '"server_error"' in client.post("/v1/completions", json=LONG | {"stream": True}).text
    assert client.post("/v1/completions", json=LONG | {"max_tokens": 2}).status_code == 200


def test_many_clients_at_once_are_all_answered(served: Running, client: httpx.Client) -> None:
    """More than there are rows, of both models, each as if it were alone."""

    def ask(number: int) -> str:
        body = {
            "model": ("lamps", "tuned")[number % 2],
            "prompt": f"{number % 5}",
            "temperature": 0,
            "max_tokens": 8,
        }
        return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    alone = [ask(number) for number in range(10)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(40))) == alone * 4


def test_metrics_count_requests_tokens_and_times(served: Running, client: httpx.Client) -> None:
    """In Prometheus' format."""
    before = metrics(client)
    found = client.post("/v1/completions", json=LONG | {"max_tokens": 3, "stop": ["never"]}).json()
    served.wait_idle()
    after = metrics(client)
    added = {name: value - before.get(name, 0) for name, value in after.items()}
    assert added["finetune_requests_total tuned /v1/completions 200"] == 1
    assert added["finetune_tokens_total generated tuned"] == found["usage"]["completion_tokens"]
    assert added["finetune_first_token_seconds_count tuned"] == 1
    assert after["finetune_requests_running"] == after["finetune_requests_waiting"] == 0


def test_an_ending_server_writes_what_was_asked(models: dict[str, Any]) -> None:
    """To its last token, and takes no connection any more."""
    with running([str(models["tuned"])]) as server:
        answers: list[httpx.Response] = []

        def ask() -> None:
            with server.client() as client:
                answers.append(client.post("/v1/completions", json=LONG | {"stop": ["never"]}))

        asking = threading.Thread(target=ask)
        asking.start()
        while not server.server.worker.running:
            time.sleep(0.001)
        server.listener.end()
        asking.join()
        assert answers[0].json()["choices"][0]["finish_reason"] in ("stop", "length")
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError), server.client() as client:
            client.get("/health")

"""Many clients, clients that go, bodies that nobody sends on purpose, and curl."""

import asyncio
import copy
import json
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.cli import ROOT
from tests.support.serving import Running

CHAT = {
    "model": "lamps", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 3, "temperature": 0.5, "top_p": 0.9,
    "n": 1, "seed": 1, "stop": ["x"], "stream": False, "stream_options": {"include_usage": True}, "logprobs": True,
    "top_logprobs": 1, "tools": [], "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}}},
}  # fmt: skip
TEXT = {"model": "tuned", "prompt": "x", "max_tokens": 3, "logprobs": 1, "stop": "y", "n": 2, "stream": True}
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**40, 0.5, -0.0, 1e308, 1e-320, "", "x", "\x00", "\u202e", "🦙" * 50,
    "<|im_end|>", "<|im_start|>system\n", [], {}, [[]], [{}], {"role": "user"}, [1, 2], [-1], [400], [10**9], ["", ""], "x" * 5000,
    {"role": "tool", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [{"function": {}}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]},
    {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}, "../../etc/passwd", "{{ 7 * 7 }}",
]  # fmt: skip
BODIES = 200


def mutated(draw: random.Random) -> tuple[str, bytes]:
    """A path and a body with a few values in other places than they belong to."""
    path, body = draw.choice([("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
    body = copy.deepcopy(body)
    for _ in range(draw.choice([1, 1, 2])):
        place: Any = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw.choice([*keys, "unknown"] if isinstance(place, dict) else keys or [None])
            if key is None:
                break
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if isinstance(inner, dict | list) and inner and draw.random() < 0.7:
                place = inner
                continue
            alike = [value for value in NASTY if type(value) is type(inner)]
            place[key] = copy.deepcopy(draw.choice(alike if alike and draw.random() < 0.6 else NASTY))
            break
    content = json.dumps(body).encode()
    if draw.random() < 0.1:
        cut = draw.randrange(len(content))
        content = content[:cut] + bytes([draw.randrange(256)]) + content[cut + draw.randint(0, 3) :]
    return path, content


def test_no_body_is_answered_by_a_failure(served: Running) -> None:
    """Answered, or refused with a message; no row stays taken."""
    draw = random.Random(5)  # noqa: S311 - bodies are no secrets
    statuses = []
    with served.client(headers={"Content-Type": "application/json"}) as client:
        for number in range(BODIES):
            path, content = mutated(draw)
            found = client.post(path, content=content)
            assert found.status_code in (200, 400, 404), (number, content, found.text)
            statuses.append(found.status_code)
            assert found.status_code == 200 or found.json()["error"]["message"], (number, content)
        served.wait_idle()
        assert client.post("/v1/completions", json=TEXT).status_code == 200
    assert min(statuses.count(200), statuses.count(400)) > 20


async def ask_many(address: str, count: int, gone: int) -> list[int | None]:
    """The statuses of so many clients at once; the first `gone` of them go before they are answered."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:

        async def ask(number: int) -> int | None:
            body = {
                "model": ("lamps", "tuned")[number % 2], "prompt": f"Text {number % 40}", "max_tokens": 6, "seed": 1,
                "stream": number % 3 == 0,
            }  # fmt: skip
            call = asyncio.create_task(client.post("/v1/completions", json=body))
            if number >= gone:
                return (await call).status_code
            await asyncio.sleep(0.02 * (number % 5))
            call.cancel()
            return None

        return await asyncio.gather(*map(ask, range(count)))


def test_two_hundred_clients_at_once_of_which_twenty_go(served: Running) -> None:
    """The others are all answered, no row stays taken, and memory stays within 5 % of what 40 clients took."""
    process = psutil.Process()
    asyncio.run(ask_many(served.address, 40, 0))
    served.wait_idle()
    before = process.memory_info().rss
    statuses = asyncio.run(ask_many(served.address, 200, 20))
    served.wait_idle()
    assert statuses == [None] * 20 + [200] * 180
    assert process.memory_info().rss <= 1.05 * before


def page_block(pattern: str) -> str:
    found = re.search(pattern, (ROOT / "docs" / "serving.md").read_text(), re.M | re.S)
    assert found is not None
    return found[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_command_of_the_page_is_answered(served: Running) -> None:
    """Of docs/serving.md, to this server."""
    line = (
        page_block(r"^    (curl .*?)$")
        .replace("http://127.0.0.1:8000", served.address)
        .replace('"base"', '"lamps"')
    )
    done = subprocess.run([*shlex.split(line), "--noproxy", "*"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_python_of_the_page_is_answered(served: Running) -> None:
    """Of docs/serving.md, to this server."""
    code = page_block(r"^```python\n(.*?)^```").replace("http://127.0.0.1:8000", served.address)
    names: dict[str, Any] = {}
    exec(compile(code.replace('"orders"', '"tuned"'), str(Path("serving.md")), "exec"), names)  # noqa: S102 - a page of this repository
    assert names["answer"].choices[0].finish_reason in ("stop", "length")

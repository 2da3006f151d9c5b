"""Tokens per second of `finetune serve`: requests one after another and at once, beside `transformers serve`
as it comes and with continuous batching; and the time to the first token of our server beside that of
`generate` in one process: the same prompts, of which nothing was computed before, by turns.

    python benchmarks/bench_serve.py                               # ours
    python benchmarks/bench_serve.py --fastapi FOLDER              # and transformers' own server
    python benchmarks/bench_serve.py --model FOLDER --requests 16 --tokens 64 --rounds 3

SmolLM2-135M-Instruct, greedy, in the type that each server takes by itself (bf16 where the processor has
it), each server a process of its own and alone while it is measured, servers in turns. FOLDER is what `pip
install --target FOLDER --no-deps fastapi` fills, which transformers' server needs."""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from bench_train import ROOT, base_folder

from finetune import api
from finetune.loaded_model import Model

TOPICS = (
    "a lamp",
    "the sea",
    "a clock",
    "two cats",
    "a long road",
    "an old king",
    "the moon",
    "a small shop",
)
OURS = "finetune serve"
PEERS = {"transformers serve": (), "transformers serve, continuous": ("--continuous-batching",)}
START_SECONDS = 300.0
LONGEST_SECONDS = 3600.0
PROMPT_WORDS = (10, 250)
"""Numbers; SmolLM2 has a token for each digit."""
FIRST_TOKENS = 8
"""Prompts in each round."""
Figures = dict[str, float]


def main() -> None:
    """Measure each in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model folder in place of SmolLM2-135M-Instruct")
    parser.add_argument("--fastapi", type=Path, help="the folder in which fastapi was installed")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    model = asked.model or base_folder()
    loaded = api.load(model)
    found: dict[str, list[Figures]] = {}
    first: dict[int, list[tuple[float, float]]] = {words: [] for words in PROMPT_WORDS}
    for turn in range(asked.rounds):
        for name, command in commands(model, asked.fastapi).items():
            called = model.name if name == OURS else str(model)
            with serving(command, asked.fastapi) as address:
                figures = asyncio.run(measure(address, called, asked.requests, asked.tokens))
                for words in PROMPT_WORDS if name == OURS else ():
                    first[words] += first_tokens(address, called, loaded, words, 1_000 * turn)
            found.setdefault(name, []).append(figures)
            print(f"{name}: {shown(figures)}", flush=True)
    print(f"\nmedian of {asked.rounds}, {asked.requests} requests of {asked.tokens} tokens")
    medians = {name: middle(rounds) for name, rounds in found.items()}
    for name, figures in medians.items():
        print(f"{name:32} {shown(figures)}")
    ours = medians[OURS]
    print(f"\nat once beside one after another: {ours['at once'] / ours['one by one']:.2f} x")
    for name in PEERS.keys() & medians.keys():
        print(f"beside {name}, at once: {ours['at once'] / medians[name]['at once']:.2f} x")
    for words, pairs in first.items():
        served, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"first token of {words} words: {served:.3f} s, generate {alone:.3f} s, {ratio:.2f} x")


def commands(model: Path, fastapi: Path | None) -> dict[str, list[str]]:
    """How each server is started; the port comes behind."""
    ours = [sys.executable, "-m", "finetune", "serve", f"{model.name}={model}", "--port"]
    theirs = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    peers = {name: [*theirs, *options, "--port"] for name, options in PEERS.items()}
    return {OURS: ours} | (peers if fastapi is not None else {})


@contextmanager
def serving(command: list[str], fastapi: Path | None) -> Iterator[str]:
    """A server while it is measured, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join(map(str, filter(None, [ROOT, fastapi])))
    variables = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    log = subprocess.DEVNULL
    with subprocess.Popen([*command, str(port)], env=variables, stdout=log, stderr=log) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_it_answers(process, address)
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_it_answers(process: "subprocess.Popen[bytes]", address: str) -> None:
    """Wait for the server to take requests."""
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=START_SECONDS).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"the server did not start: {process.args!r}")


async def measure(address: str, model: str, requests: int, tokens: int) -> Figures:
    """Tokens per second one after another and at once, and the seconds to the first token of one alone."""
    async with httpx.AsyncClient(base_url=address, timeout=LONGEST_SECONDS) as client:

        def body(number: int, **options: Any) -> dict[str, Any]:
            text = f"Tell me a very long story about {TOPICS[number % len(TOPICS)]}, part {number}."
            asked = {"model": model, "messages": [{"role": "user", "content": text}]}
            return asked | {"temperature": 0, "max_tokens": tokens} | options

        async def answer(number: int) -> int:
            found = await client.post("/v1/chat/completions", json=body(number))
            found.raise_for_status()
            return int(found.json()["usage"]["completion_tokens"])

        async def first_token(number: int) -> float:
            began = time.perf_counter()
            async with client.stream(
                "POST", "/v1/chat/completions", json=body(number, stream=True)
            ) as stream:
                async for line in stream.aiter_lines():
                    if line.startswith("data: {") and said(json.loads(line[6:])):
                        return time.perf_counter() - began
            raise SystemExit("a stream had no token")

        await answer(1_000)  # what is loaded and compiled at the first request
        first = [await first_token(2_000 + number) for number in range(5)]
        began = time.perf_counter()
        made = sum([await answer(3_000 + number) for number in range(requests)])
        one_by_one = made / (time.perf_counter() - began)
        began = time.perf_counter()
        made = sum(await asyncio.gather(*(answer(4_000 + number) for number in range(requests))))
        at_once = made / (time.perf_counter() - began)
        return {"one by one": one_by_one, "at once": at_once, "first token": statistics.median(first)}


def said(event: dict[str, Any]) -> bool:
    """Whether an event of a stream holds a part of the answer."""
    return any(choice["delta"].get("content") for choice in event["choices"])


def first_tokens(
    address: str, called: str, loaded: Model, words: int, number: int
) -> list[tuple[float, float]]:
    """The seconds to the first text of a stream, by the server and by `generate`, for each of some prompts
    that begin differently. Which comes first changes; the first prompt only warms up."""
    with httpx.Client(base_url=address, timeout=LONGEST_SECONDS) as client:

        def served(text: str) -> None:
            body = {"model": called, "prompt": text, "temperature": 0, "max_tokens": 8, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as stream:
                next(line for line in stream.iter_lines() if '"text": "' in line)

        def generated(text: str) -> None:
            next(loaded.stream(text, max_new_tokens=8, how="plainly"))

        found = []
        for turn in range(FIRST_TOKENS + 1):
            text = " ".join(str(number + turn + place) for place in range(words))
            ways = (served, generated) if turn % 2 else (generated, served)
            times = {way: seconds(way, text) for way in ways}
            found.append((times[served], times[generated]))
    return found[1:]


def seconds(way: Callable[[str], None], text: str) -> float:
    """How long it takes."""
    began = time.perf_counter()
    way(text)
    return time.perf_counter() - began


def middle(rounds: list[Figures]) -> Figures:
    """The median of each figure."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def shown(figures: Figures) -> str:
    """A line of a table."""
    speeds = f"{figures['one by one']:7.1f} tokens/s one by one, {figures['at once']:7.1f} at once"
    return f"{speeds}, first token after {figures['first token']:.3f} s"


if __name__ == "__main__":
    main()

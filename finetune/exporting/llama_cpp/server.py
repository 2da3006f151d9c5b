"""Questions to llama.cpp's server, which runs beside us while they are asked."""

import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from finetune.errors import CheckFailed
from finetune.models.device import choose_threads

WAIT_SECONDS = 600
"""For one answer."""
WORKER = str(Path(__file__).with_name("worker.py"))


class LlamaCpp:
    """A model in llama.cpp."""

    def __init__(self, address: str):
        self._address = address
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    @cached_property
    def _letter(self) -> int:
        return self.tokens("x")[-1]

    def tokens(self, text: str) -> list[int]:
        """A text's token ids, special tokens read as such, with what stands around a text."""
        asked = {"content": text, "add_special": True, "parse_special": True}
        found: list[int] = self._ask("tokenize", asked)["tokens"]
        return found

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation up to its next answer, by the template in the file."""
        return str(self._ask("apply-template", {"messages": list(messages)})["prompt"])

    def log_probabilities(self, ids: Sequence[int], likeliest: int) -> dict[int, float]:
        """Those of the likeliest tokens after some tokens. Raises CheckFailed where they are no numbers."""
        # They are those before anything is drawn; of a token without a text llama.cpp tells none.
        drawn = [[self._letter, 1e6]]
        made = self._complete(ids, 1, n_probs=likeliest, logit_bias=drawn)
        told = made.get("completion_probabilities") or [{"top_logprobs": []}]
        found = {entry["id"]: entry["logprob"] for entry in told[0]["top_logprobs"]}
        if not found or None in found.values():
            raise CheckFailed("llama.cpp computes no log-probabilities of this model: it overflows there.")
        return found

    def answer(self, ids: Sequence[int], tokens: int) -> list[int]:
        """The likeliest tokens after some, up to the end of the answer and without it, at most so many."""
        found: list[int] = self._complete(ids, tokens, return_tokens=True)["tokens"]
        return found

    def ends_at(self, token: int, ids: Sequence[int]) -> bool:
        """Whether an answer is over once that token was made."""
        return str(self._complete(ids, 2, logit_bias=[[token, 1e6]])["stop_type"]) == "eos"

    def _complete(self, ids: Sequence[int], tokens: int, **options: Any) -> Any:
        asked = {"prompt": list(ids), "n_predict": tokens, "temperature": 0, "cache_prompt": True}
        return self._ask("completion", asked | options)

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - an address of this machine
            f"{self._address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._open(request, timeout=WAIT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise CheckFailed(
                f"llama.cpp refuses a question ({path}): {error.read().decode()[:500]}"
            ) from error
        except OSError as error:
            raise CheckFailed(f"llama.cpp doesn't answer any more ({path}): {error}") from error


@contextmanager
def running(model: Path, context: int, lora: Path | None = None) -> Iterator[LlamaCpp]:
    """llama.cpp with a file loaded, keys and values in float32. Raises CheckFailed where it doesn't read
    it."""
    orders = {
        "model": str(model),
        "context": context,
        "threads": choose_threads(),
        "lora": str(lora) if lora is not None else None,
    }
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        assert worker.stdin is not None  # noqa: S101 - they are pipes
        assert worker.stdout is not None  # noqa: S101
        try:
            worker.stdin.write(json.dumps(orders).encode() + b"\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise CheckFailed(f"llama.cpp can't read {model.name}: {_last_words(log)}")
            yield LlamaCpp(json.loads(line)["address"])
        finally:
            worker.stdin.close()
            worker.kill()
            worker.wait()
            worker.stdout.close()


def _last_words(log: IO[bytes]) -> str:
    """What llama.cpp said before it ended."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return " / ".join((wrong or lines)[:2] or ["it ended without a word"])[:600]

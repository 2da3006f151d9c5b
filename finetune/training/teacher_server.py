"""A teacher behind a server that speaks OpenAI's API and tells the log-probabilities of a prompt's tokens:
prompt_logprobs of /v1/completions, as vLLM and finetune serve have it."""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from data_prep.table.documents import Document
from data_prep.tokenizers.tokens import bytes_of
from finetune.environment import API_KEY
from finetune.errors import ModelError
from finetune.training.teacher_store import TeacherQuery

logger = logging.getLogger(__name__)

AT_A_TIME = 8
TRIES = 3
SECONDS = 600.0
MOST_BYTES = 1 << 30
UNWRITTEN = "\ufffd"
"""What stands in a token's text for bytes that are no whole character."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for the server that was named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class ServerTeacher:
    """What answers in place of a model that is loaded here."""

    def __init__(self, url: str, model: str, tokenizer: PreTrainedTokenizerFast):
        self.url, self.model, self.tokenizer = url.rstrip("/"), model, tokenizer
        self._open = urllib.request.build_opener(_NoRedirect()).open
        self._compared = False
        logger.info(f"teacher    {model} at {self.url}")

    def records(self, documents: Sequence[Document], query: TeacherQuery) -> np.ndarray:
        """What the server says at the documents' positions, in their order. Raises ModelError where it can't
        be reached, or has no such answers."""
        with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="teacher") as threads:
            answers = threads.map(lambda document: self._asked(document, query.top_k), documents)
            return np.concatenate([
                self._records(document, answer, query)
                for document, answer in zip(documents, answers, strict=True)
            ])  # fmt: skip

    def _records(self, document: Document, said: list[Any], query: TeacherQuery) -> np.ndarray:
        """Of one document, from what the server says of each of its tokens."""
        places = [place for place, learned in enumerate(document.supervised) if learned]
        rows = np.zeros(len(places), query.record)
        for row, place in zip(rows, places, strict=True):
            found = self._numbers(said[place], document)
            self._compare(said[place])
            token = document.token_ids[place]
            likeliest = sorted(found.items(), key=lambda pair: -pair[1])[: query.top_k]
            if token not in found or len(likeliest) < query.top_k or max(found) >= query.vocabulary:
                raise self._refused(
                    f"of token {place + 1} of {document.place} it tells {len(found):,} log-probabilities; "
                    f"expected {query.top_k:,} of {query.vocabulary:,} tokens, and the token's own"
                )
            row["label"] = found[token]
            row["tokens"] = [own for own, _ in likeliest]
            row["log_p"][:-1] = logs = [logprob for _, logprob in likeliest]
            rest = 1 - np.exp(np.array(logs, np.float64)).sum()
            row["log_p"][-1] = np.log(rest) if rest > 0 else -np.inf
        return rows

    def _numbers(self, said: Any, document: Document) -> dict[int, float]:
        try:
            return {int(token): min(float(one["logprob"]), 0.0) for token, one in said.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._refused(f"of {document.place} it tells {str(said)[:80]!r}") from error

    def _compare(self, said: dict[str, dict[str, Any]]) -> None:
        """Once: whether the server's tokens are the student's, by the texts of those that are whole
        characters."""
        if self._compared:
            return
        known = {int(token): str(one.get("decoded_token") or "").strip() for token, one in said.items()}
        own = {token: bytes_of(token, self.tokenizer).decode(errors="replace").strip() for token in known}
        whole = [token for token in known if known[token] and UNWRITTEN not in known[token] + own[token]]
        wrong = [token for token in whole if own[token] != known[token]]
        self._compared = bool(whole)
        if 2 * len(wrong) > len(whole):
            token = wrong[0]
            raise self._refused(
                f"token {token} is {known[token]!r} there, and {own[token]!r} in the student's tokenizer: "
                "distributions are compared token by token; take a teacher of the same tokenizer"
            )

    # --- Requests

    def _asked(self, document: Document, count: int) -> list[Any]:
        """What the server says of each token of a document."""
        body = {
            "model": self.model, "prompt": document.token_ids, "max_tokens": 1, "temperature": 0,
            "prompt_logprobs": count,
        }  # fmt: skip
        answer = self._answer(json.dumps(body).encode(), document)
        try:
            found = json.loads(answer)["choices"][0]["prompt_logprobs"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise self._refused(f"to {document.place} it answers {answer[:200]!r}") from error
        if not isinstance(found, list) or len(found) != len(document.token_ids):
            raise self._refused(
                f"to {document.place} it gives no prompt_logprobs of each of the row's tokens"
            )
        return found

    def _answer(self, body: bytes, document: Document) -> bytes:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {os.environ[API_KEY]}"
        for left in reversed(range(TRIES)):
            request = urllib.request.Request(f"{self.url}/completions", body, headers)  # noqa: S310 - http(s), by the rules
            try:
                with self._open(request, timeout=SECONDS) as answer:
                    content: bytes = answer.read(MOST_BYTES)
                    return content
            except urllib.error.HTTPError as error:
                why, again = f"{error.code}: {error.read(300).decode(errors='replace')}", error.code >= 500
            except (OSError, HTTPException) as error:
                why, again = str(error), True
            if not again or not left:
                break
            time.sleep(2.0 ** (TRIES - left))
        raise self._refused(f"asked about {document.place} it answers {why}")

    def _refused(self, what: str) -> ModelError:
        return ModelError(
            f"objective.teacher {self.url} ({self.model}): {what}. Expected a server whose /completions "
            "tells prompt_logprobs, as finetune serve and vLLM (with --max-logprobs as large as "
            "objective.top_k). What it said before is kept."
        )

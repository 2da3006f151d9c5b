"""What a client gets: an answer whole, or in the pieces in which it comes, in OpenAI's form."""

import json
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from data_prep.tokenizers.tokens import bytes_of
from finetune.generation.request import Piece, Request, TokenLogprob
from finetune.serving.tool_calls import CallForm

LEAST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON doesn't have."""
LAST_EVENT = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One answer, as far as it has come."""

    index: int
    request: Request
    text: str = ""
    tokens: int = 0
    reused_tokens: int = 0
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    def take(self, piece: Piece) -> None:
        """Add a piece."""
        self.text += piece.text
        self.tokens, self.reused_tokens, self.finish = piece.tokens, piece.reused_tokens, piece.finish
        if piece.logprob is not None:
            self.logprobs.append(piece.logprob)
        if piece.prompt_logprobs is not None:
            self.prompt_logprobs = piece.prompt_logprobs


class Writer:
    """Writes the answers to one request. `chat` is the form of conversations, otherwise that of texts."""

    def __init__(self, model: str, requests: Sequence[Request], *, chat: bool, calls: CallForm | None = None):
        self.chat, self.calls = chat, calls
        self.choices = {request: Choice(index, request) for index, request in enumerate(requests)}
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self) -> dict[str, Any]:
        """All answers, once they are finished."""
        choices = [self._whole_choice(choice) for choice in self.choices.values()]
        return self._head | {"choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """How many tokens went in and came out."""
        choices = self.choices.values()
        prompts = {id(choice.request.prompt): choice for choice in choices}.values()
        asked = sum(len(choice.request.prompt) for choice in prompts)
        made = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": asked,
            "completion_tokens": made,
            "total_tokens": asked + made,
            "prompt_tokens_details": {"cached_tokens": sum(choice.reused_tokens for choice in prompts)},
        }

    def first_events(self) -> list[bytes]:
        """Of a conversation, who speaks."""
        if not self.chat:
            return []
        delta = {"role": "assistant", "content": ""}
        return [self._event(choice, delta, None, None) for choice in self.choices.values()]

    def events(self, piece: Piece) -> list[bytes]:
        """What a piece adds to a stream. Where an answer may be a call of a tool, it comes whole."""
        choice = self.choices[piece.request]
        choice.take(piece)
        if self.calls is not None:
            return [] if piece.finish is None else self._whole_events(choice)
        found = [] if piece.logprob is None else [piece.logprob]
        if not piece.text and not found and piece.finish is None:
            return []
        if not self.chat:
            return [self._event(choice, piece.text, found, piece.finish)]
        events = [self._event(choice, {"content": piece.text}, found, None)] if piece.text or found else []
        return [*events, *([self._event(choice, {}, None, piece.finish)] if piece.finish else [])]

    def usage_event(self) -> bytes:
        """The tokens, where a stream was asked for them."""
        return event(self._chunk_head() | {"choices": [], "usage": self.usage()})

    # --- One choice

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        found = choice.logprobs if choice.request.logprobs is not None else None
        told = self._logprobs(choice, found)
        shared: dict[str, Any] = {
            "index": choice.index, "logprobs": told, "finish_reason": choice.finish,
        }  # fmt: skip
        if not self.chat:
            if choice.prompt_logprobs is not None:
                tokenizer = choice.request.speaker.tokenizer
                shared["prompt_logprobs"] = _prompt_logprobs(choice.prompt_logprobs, tokenizer)
            return shared | {"text": choice.text}
        text, calls = self._said(choice)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        if calls:
            message["tool_calls"], shared["finish_reason"] = calls, "tool_calls"
        return shared | {"message": message}

    def _whole_events(self, choice: Choice) -> list[bytes]:
        text, calls = self._said(choice)
        delta: dict[str, Any] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [{"index": number} | call for number, call in enumerate(calls)]
        finish = "tool_calls" if calls else choice.finish
        return [self._event(choice, delta, choice.logprobs, None), self._event(choice, {}, None, finish)]

    def _said(self, choice: Choice) -> tuple[str, list[dict[str, Any]]]:
        if self.calls is None or choice.finish != "stop":
            return choice.text, []
        return self.calls.split(choice.text)

    def _event(
        self, choice: Choice, said: Any, logprobs: Sequence[TokenLogprob] | None, finish: str | None
    ) -> bytes:
        asked = choice.request.logprobs is not None
        told = self._logprobs(choice, logprobs if asked else None)
        one = {"index": choice.index, "delta" if self.chat else "text": said}
        return event(self._chunk_head() | {"choices": [one | {"logprobs": told, "finish_reason": finish}]})

    def _chunk_head(self) -> dict[str, Any]:
        return self._head | ({"object": "chat.completion.chunk"} if self.chat else {})

    def _logprobs(self, choice: Choice, found: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if found is None:
            return None
        tokenizer = choice.request.speaker.tokenizer
        return _chat_logprobs(found, tokenizer) if self.chat else _text_logprobs(found, tokenizer)


def _chat_logprobs(found: Sequence[TokenLogprob], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    def told(token: int, logprob: float) -> dict[str, Any]:
        content = bytes_of(token, tokenizer)
        return {"token": _as_text(content), "logprob": _finite(logprob), "bytes": list(content)}

    content = [
        told(one.token, one.logprob) | {"top_logprobs": [told(*likely) for likely in one.likeliest]}
        for one in found
    ]
    return {"content": content, "refusal": None}


def _text_logprobs(found: Sequence[TokenLogprob], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    def text(token: int) -> str:
        return _as_text(bytes_of(token, tokenizer))

    return {
        "tokens": [text(one.token) for one in found],
        "token_logprobs": [_finite(one.logprob) for one in found],
        # Of two tokens of one text (a letter, and the same as a byte) the likelier is told.
        "top_logprobs": [
            {text(token): _finite(logprob) for token, logprob in reversed(one.likeliest)} for one in found
        ],
    }


def _prompt_logprobs(
    found: Sequence[TokenLogprob], tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, Any] | None]:
    """In vLLM's form: for each token of the prompt, which the first has none of, the likeliest ones by their
    ids, and the token itself."""

    def told(token: int, logprob: float, rank: int | None) -> dict[str, Any]:
        text = _as_text(bytes_of(token, tokenizer))
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": text}

    rows: list[dict[str, Any] | None] = [None]
    for one in found:
        likeliest = {
            str(token): told(token, logprob, rank)
            for rank, (token, logprob) in enumerate(one.likeliest, start=1)
        }
        rows.append({str(one.token): told(one.token, one.logprob, None)} | likeliest)
    return rows


def _as_text(content: bytes) -> str:
    """A token's text; its bytes where they are no whole characters, as OpenAI's older API writes them."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"

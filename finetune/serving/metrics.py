"""What /metrics tells, in Prometheus' text format."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from finetune.serving.responses import Writer
from finetune.serving.worker import Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts and times of one server."""

    def __init__(self, worker: Worker):
        self._registry = CollectorRegistry()
        running = Gauge("finetune_requests_running", "Answers being written.", registry=self._registry)
        running.set_function(lambda: worker.running)
        waiting = Gauge("finetune_requests_waiting", "Answers that wait for a row.", registry=self._registry)
        waiting.set_function(lambda: worker.waiting)
        self._requests = Counter(
            "finetune_requests", "Requests by endpoint, model and status.", ["path", "model", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._tokens = Counter(
            "finetune_tokens", "Tokens of prompts, those of them that were reused, and of answers.",
            ["model", "kind"], registry=self._registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "finetune_first_token_seconds", "Time to the first token of a request.", ["model"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "finetune_request_seconds", "Time to the last token of a request.", ["model"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)

    def ended(self, path: str, model: str, status: int) -> None:
        """A request was answered, refused (4xx), or its client has gone (499)."""
        self._requests.labels(path, model, str(status)).inc()

    def answered(self, model: str, writer: Writer, began: float, first_piece: float) -> None:
        """The answers of a request are whole; its times are of time.monotonic()."""
        usage = writer.usage()
        kinds = {"prompt": usage["prompt_tokens"], "generated": usage["completion_tokens"]}
        kinds["reused"] = usage["prompt_tokens_details"]["cached_tokens"]
        for kind, count in kinds.items():
            self._tokens.labels(model, kind).inc(count)
        self._first_token.labels(model).observe(first_piece - began)
        self._seconds.labels(model).observe(time.monotonic() - began)

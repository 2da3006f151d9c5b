"""What an experiment tracker is, and what keeps one from stopping a training.

Metrics have the names of metrics.jsonl, which has everything as well.

| name | unit | logged |
|---|---|---|
| train/loss | nats a supervised token, mean of the step | every train.log_every |
| train/gradient_norm | L2, before clipping | with it |
| train/learning_rate | of the step | with it |
| train/learning_rate_lora_b | of the adapter's matrices B, with train.loraplus_lr_ratio | with it |
| train/learning_rate_embeddings | of embed_tokens and lm_head, with train.embedding_learning_rate | with it |
| train/tokens_per_second | all tokens of all processes, padding aside | with it |
| train/supervised_tokens | tokens with a label, since the start | with it |
| train/epoch | of the data | with it |
| eval/loss | nats a supervised token, mean over all held-out rows | every train.evaluate_every |
| eval/perplexity | e to the power of it | with it |
| eval/NAME | of evaluate.metrics, on the first evaluate.rows_in_training rows | with it |
| final/NAME | of evaluate.metrics, on all held-out rows | once, of the result |
| system/memory_bytes | peak: of the GPU, else resident | with train/loss |
| samples | a table: prompt, answer | every tracking.samples.every_steps |

Every other tracker that transformers drives has transformers' own names (of the result train/final/NAME), and
no samples.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from finetune.errors import TrackerError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedSample:
    """A text that the model wrote."""

    prompt: str
    answer: str
    rewards: Mapping[str, float] = field(default_factory=dict)
    """What it is worth, where that was measured."""


def table_of(samples: Sequence[GeneratedSample]) -> tuple[str, list[str], list[list[Any]]]:
    """The name, the columns and the rows of a table of texts, with a column for each reward."""
    rewards = list(samples[0].rewards) if samples else []
    rows = [[one.prompt, one.answer, *(one.rewards[name] for name in rewards)] for one in samples]
    return "answers" if rewards else "samples", ["prompt", "answer", *rewards], rows


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics at an optimizer step."""

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Record what the model wrote at an optimizer step."""

    def upload(self, adapter: Path) -> None:
        """Keep the trained adapter, where the recipe asks for it."""

    def finish(self, status: str) -> None:
        """Write what is outstanding. `status`: what became of the run, as in its summary."""


class NoTracker:
    """`tracking.tracker: none`, and those that transformers drives."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Nothing: metrics.jsonl has it."""

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Nothing: samples.jsonl has them."""

    def upload(self, adapter: Path) -> None:
        """Nothing: the run folder has it."""

    def finish(self, status: str) -> None:
        """Nothing is outstanding."""


class GuardedTracker:
    """A tracker that can't stop the training: the first failure is reported and the tracker left alone from
    then on."""

    def __init__(self, inner: Tracker, name: str):
        self.inner, self.name, self.failed = inner, name, False

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Pass the metrics on, as long as the tracker works."""
        self.guarded(lambda: self.inner.log(metrics, step))

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Pass the texts on, as long as the tracker works."""
        self.guarded(lambda: self.inner.log_samples(samples, step))

    def upload(self, adapter: Path) -> None:
        """Pass the adapter on, as long as the tracker works."""
        self.guarded(lambda: self.inner.upload(adapter))

    def finish(self, status: str) -> None:
        """Write what is outstanding, as long as the tracker works."""
        self.guarded(lambda: self.inner.finish(status))

    def guarded(self, call: Callable[[], Any]) -> None:
        """Call, as long as nothing failed before."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on; it is reported once
            self.failed = True
            logger.warning(
                f"the tracker {self.name} failed ({type(error).__name__}: {error}); metrics.jsonl continues"
            )


class SeveralTrackers:
    """Trackers as one; each goes on where another failed."""

    def __init__(self, members: Sequence[Tracker]):
        self.members = members

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics in each."""
        for member in self.members:
            member.log(metrics, step)

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Record texts in each."""
        for member in self.members:
            member.log_samples(samples, step)

    def upload(self, adapter: Path) -> None:
        """Keep the adapter, in each that does."""
        for member in self.members:
            member.upload(adapter)

    def finish(self, status: str) -> None:
        """Write what is outstanding, in each."""
        for member in self.members:
            member.finish(status)


def tracker_error(name: str, error: Exception) -> TrackerError:
    """A tracker that can't start."""
    offline = ", set tracking.wandb_mode: offline" if name == "wandb" else ""
    return TrackerError(
        f"tracking.tracker {name} could not start ({type(error).__name__}: {' '.join(str(error).split())}). "
        f"Mend that{offline}, or set tracking.tracker: none; metrics.jsonl is written in any case."
    )

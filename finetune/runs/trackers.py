"""Experiment trackers: Trackio (local SQLite) and wandb, under the names of metrics.jsonl, which has
everything as well.

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

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_prep.disk import make_private
from finetune.errors import TrackerError
from finetune.recipe.schema.tracking import TrackerName, TrackingSection
from finetune.recipe.secrets import scrubbed
from finetune.recipe.tracking import with_environment
from finetune.runs.folder import WANDB
from finetune.runs.wandb_settings import NO_ACCOUNT, Mode, has_account, open_settings, wandb_mode

logger = logging.getLogger(__name__)

OWN = ("trackio", "wandb", "none")
"""Trackers that are driven here; transformers drives the others."""


@dataclass(frozen=True)
class GeneratedSample:
    """A text that the model wrote."""

    prompt: str
    answer: str
    rewards: Mapping[str, float] = field(default_factory=dict)
    """What it is worth, where that was measured."""


def _table(samples: Sequence[GeneratedSample]) -> tuple[str, list[str], list[list[Any]]]:
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

    def finish(self) -> None:
        """Write what is outstanding."""


class NoTracker:
    """`tracking.tracker: none`, and those that transformers drives."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Nothing: metrics.jsonl has it."""

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Nothing: samples.jsonl has them."""

    def upload(self, adapter: Path) -> None:
        """Nothing: the run folder has it."""

    def finish(self) -> None:
        """Nothing is outstanding."""


class TrackioTracker:
    """A run in Trackio's local database; `finetune runs ui` shows it."""

    def __init__(self, section: TrackingSection, run_id: str, recipe: dict[str, Any]):
        import trackio

        # Trackio prints how to open its dashboard; the toolkit says that once, in its own summary.
        with contextlib.redirect_stdout(io.StringIO()):
            self.run = trackio.init(
                project=section.project,
                name=run_id,
                group=section.group,
                config=recipe,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
            )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Queue the metrics; Trackio writes them in the background."""
        self.run.log(metrics, step=step)

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """A table of prompts and answers."""
        import trackio

        name, columns, rows = _table(samples)
        self.run.log({name: trackio.Table(columns=columns, data=rows)}, step=step)

    def upload(self, adapter: Path) -> None:
        """Nothing: the rules of the recipe refuse it."""

    def finish(self) -> None:
        """Wait until the database has everything."""
        import trackio

        # Not self.run.finish(): that leaves the run for Trackio to finish, and to announce, again at exit.
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


class WandbTracker:
    """A wandb run: online with an account, else offline files that `wandb sync` uploads later."""

    def __init__(
        self, section: TrackingSection, run_id: str, recipe: dict[str, Any], folder: Path, mode: Mode
    ):
        import wandb

        self.section, self.run_id = section, run_id
        settings = open_settings(run_id, str(folder))
        if "dir" in settings:
            make_private(folder / WANDB)
        with _command_line_without_secrets():
            self.run = wandb.init(
                project=section.project,
                id=run_id,
                config=recipe,
                group=section.group,
                tags=list(section.tags),
                notes=section.notes,
                mode=mode,
                **settings,
            )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record the metrics."""
        self.run.log(metrics, step=step)

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """A table of prompts and answers."""
        import wandb

        name, columns, rows = _table(samples)
        with_step = [[step, *row] for row in rows]
        self.run.log({name: wandb.Table(columns=["step", *columns], data=with_step)}, step=step)

    def upload(self, adapter: Path) -> None:
        """The adapter's folder as an artifact of the run."""
        import wandb

        if self.section.upload_adapter:
            artifact = wandb.Artifact(f"{self.run_id}-adapter", type="model")
            artifact.add_dir(str(adapter))
            self.run.log_artifact(artifact)

    def finish(self) -> None:
        """Write what is outstanding."""
        self.run.finish()


@contextlib.contextmanager
def _command_line_without_secrets() -> Iterator[None]:
    """wandb keeps the arguments that the process was started with."""
    arguments = sys.argv
    sys.argv = [scrubbed(argument) for argument in arguments]
    try:
        yield
    finally:
        sys.argv = arguments


class GuardedTracker:
    """A tracker that can't stop the training: the first failure is reported and the tracker left alone from
    then on."""

    def __init__(self, inner: Tracker):
        self.inner, self.failed = inner, False

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Pass the metrics on, as long as the tracker works."""
        self.guarded(lambda: self.inner.log(metrics, step))

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Pass the texts on, as long as the tracker works."""
        self.guarded(lambda: self.inner.log_samples(samples, step))

    def upload(self, adapter: Path) -> None:
        """Pass the adapter on, as long as the tracker works."""
        self.guarded(lambda: self.inner.upload(adapter))

    def finish(self) -> None:
        """Write what is outstanding, as long as the tracker works."""
        self.guarded(self.inner.finish)

    def guarded(self, call: Callable[[], Any]) -> None:
        """Call, as long as nothing failed before."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on; it is reported once
            self.failed = True
            logger.warning(f"the tracker failed ({type(error).__name__}: {error}); metrics.jsonl continues")


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

    def finish(self) -> None:
        """Write what is outstanding, in each."""
        for member in self.members:
            member.finish()


def start_tracker(
    name: TrackerName, section: TrackingSection, run_id: str, recipe: dict[str, Any], *, folder: Path
) -> GuardedTracker:
    """Start one of the recipe's trackers under `run_id`, or go on in the run that has this id.

    Raises TrackerError, before anything is trained, where it can't start.
    """
    try:
        if name == "wandb":
            return GuardedTracker(start_wandb(with_environment(section), run_id, recipe, folder))
        if name == "trackio":
            return GuardedTracker(start_trackio(section, run_id, recipe))
        return GuardedTracker(NoTracker())
    except TrackerError:
        raise
    except Exception as error:
        raise tracker_error(name, error) from error


def start_trackio(section: TrackingSection, run_id: str, recipe: dict[str, Any]) -> Tracker:
    """Trackio, unless its folder can't be written to: it would only warn, by itself, that each batch of
    metrics is lost."""
    from trackio.utils import TRACKIO_DIR

    if not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")):
        try:
            Path(TRACKIO_DIR).parent.mkdir(parents=True, exist_ok=True)
            if not Path(TRACKIO_DIR).is_dir():
                make_private(Path(TRACKIO_DIR))
            with tempfile.TemporaryFile(dir=TRACKIO_DIR):
                pass
        except OSError as error:
            logger.warning(
                f"Trackio can't write to {TRACKIO_DIR} ({error.strerror}), so this run is not tracked; "
                "metrics.jsonl has it all. Set TRACKIO_DIR to another folder, or tracking.tracker: none."
            )
            return NoTracker()
    return TrackioTracker(section, run_id, recipe)


def start_wandb(section: TrackingSection, run_id: str, recipe: dict[str, Any], folder: Path) -> Tracker:
    """wandb in the mode that recipe and environment ask for; what wasn't asked for is said."""
    mode = wandb_mode(section)
    if mode == "disabled":
        logger.info("WANDB_MODE is disabled: nothing goes to wandb; metrics.jsonl is written")
        return NoTracker()
    if mode == "offline" and section.wandb_mode == "auto" and not has_account():
        logger.info(f"{NO_ACCOUNT}: the run is written offline, and `wandb sync` uploads it later")
    return WandbTracker(section, run_id, recipe, folder, mode)


def tracker_error(name: str, error: Exception) -> TrackerError:
    """A tracker that can't start."""
    offline = ", set tracking.wandb_mode: offline" if name == "wandb" else ""
    return TrackerError(
        f"tracking.tracker {name} could not start ({type(error).__name__}: {' '.join(str(error).split())}). "
        f"Mend that{offline}, or set tracking.tracker: none; metrics.jsonl is written in any case."
    )

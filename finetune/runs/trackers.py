"""Experiment trackers: Trackio (local SQLite, no account) and wandb. metrics.jsonl in the run folder has everything as well.

Names, in all three: train/loss, train/gradient_norm, train/learning_rate, train/tokens_per_second, train/supervised_tokens,
train/epoch, eval/loss, eval/perplexity, system/memory_bytes; each by optimizer step.
"""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from finetune.errors import TrackerError
from finetune.recipe.schema.tracking import TrackingSection


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics at an optimizer step."""

    def finish(self) -> None:
        """Write what is outstanding."""


class NoTracker:
    """`tracking.tracker: none`."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Nothing: metrics.jsonl has it."""

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
                config=recipe,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
            )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Queue the metrics; Trackio writes them in the background."""
        self.run.log(metrics, step=step)

    def finish(self) -> None:
        """Wait until the database has everything."""
        import trackio

        # Not self.run.finish(): that leaves the run for Trackio to finish, and to announce, again at exit.
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # type: ignore[no-untyped-call]


class WandbTracker:
    """A wandb run: online with an account, else offline files that `wandb sync` uploads later."""

    def __init__(self, section: TrackingSection, run_id: str, recipe: dict[str, Any], folder: Path):
        import wandb

        self.run = wandb.init(
            project=section.project,
            name=run_id,
            id=run_id,
            config=recipe,
            dir=str(folder),
            mode=wandb_mode(section),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record the metrics."""
        self.run.log(metrics, step=step)

    def finish(self) -> None:
        """Write what is outstanding."""
        self.run.finish()


def wandb_mode(section: TrackingSection) -> Literal["online", "offline"]:
    """online or offline; auto is online where WANDB_API_KEY is set. Raises TrackerError for online without a key."""
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    if section.wandb_mode == "auto":
        return "online" if has_key else "offline"
    if section.wandb_mode == "online" and not has_key:
        raise TrackerError(
            "tracking.wandb_mode online needs WANDB_API_KEY in the environment. Set it, or set tracking.wandb_mode: offline."
        )
    return section.wandb_mode


class GuardedTracker:
    """A tracker that can't stop the training: the first failure is reported and the tracker left alone from then on."""

    def __init__(self, inner: Tracker, say: Callable[[str], None]):
        self.inner, self.say, self.failed = inner, say, False

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Pass the metrics on, as long as the tracker works."""
        self._guarded(lambda: self.inner.log(metrics, step))

    def finish(self) -> None:
        """Write what is outstanding, as long as the tracker works."""
        self._guarded(self.inner.finish)

    def _guarded(self, call: Any) -> None:
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on; it is reported once
            self.failed = True
            self.say(f"the tracker failed ({type(error).__name__}: {error}); metrics.jsonl goes on")


def start_tracker(
    section: TrackingSection, run_id: str, recipe: dict[str, Any], *, folder: Path, say: Callable[[str], None]
) -> Tracker:
    """Start the recipe's tracker under `run_id`, or go on in the run that has this id.

    Raises TrackerError, before anything is trained, where it can't start.
    """
    if section.tracker == "none":
        return NoTracker()
    try:
        if section.tracker == "wandb":
            return GuardedTracker(WandbTracker(section, run_id, recipe, folder), say)
        return GuardedTracker(TrackioTracker(section, run_id, recipe), say)
    except TrackerError:
        raise
    except Exception as error:
        raise TrackerError(
            f"tracking.tracker {section.tracker} could not start ({type(error).__name__}: {error}). "
            "Mend that, or set tracking.tracker: none; metrics.jsonl is written in any case."
        ) from error

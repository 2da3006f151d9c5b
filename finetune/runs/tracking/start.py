"""Start the trackers that a recipe names."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import TrackerError
from finetune.recipe.schema.tracking import TrackerName, TrackingSection
from finetune.recipe.tracking import with_environment
from finetune.runs.tracking.base import GuardedTracker, NoTracker, tracker_error
from finetune.runs.tracking.mlflow import start_mlflow
from finetune.runs.tracking.opentelemetry import start_opentelemetry
from finetune.runs.tracking.trackio import start_trackio
from finetune.runs.tracking.wandb import start_wandb

OWN = ("trackio", "wandb", "mlflow", "opentelemetry", "none")
"""Trackers that are driven here; transformers drives the others."""


@contextmanager
def trackers_started(
    section: TrackingSection, run_id: str, recipe: dict[str, Any], *, folder: Path
) -> Iterator[dict[TrackerName, GuardedTracker]]:
    """The recipe's trackers by their names, around what else has to begin: where that fails, as where one of
    them can't start, those that have started end as failed. Raises TrackerError as start_tracker does."""
    found: dict[TrackerName, GuardedTracker] = {}
    with ExitStack() as begun:
        for name in section.trackers:
            found[name] = start_tracker(name, section, run_id, recipe, folder=folder)
            begun.callback(found[name].finish, "failed")
        yield found
        begun.pop_all()


def start_tracker(
    name: TrackerName, section: TrackingSection, run_id: str, recipe: dict[str, Any], *, folder: Path
) -> GuardedTracker:
    """Start one of the recipe's trackers under `run_id`, or go on in the run that has this id.

    Raises TrackerError, before anything is trained, where it can't start.
    """
    try:
        if name == "wandb":
            return GuardedTracker(start_wandb(with_environment(section), run_id, recipe, folder), name)
        if name == "trackio":
            return GuardedTracker(start_trackio(section, run_id, recipe), name)
        if name == "mlflow":
            return GuardedTracker(start_mlflow(section, run_id, recipe), name)
        if name == "opentelemetry":
            return GuardedTracker(start_opentelemetry(section, run_id, folder), name)
        return GuardedTracker(NoTracker(), name)
    except TrackerError:
        raise
    except Exception as error:
        raise tracker_error(name, error) from error

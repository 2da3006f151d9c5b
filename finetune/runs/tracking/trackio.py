"""Trackio: a local SQLite database, which `finetune runs ui` shows."""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.disk import make_private
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.tracking.base import GeneratedSample, NoTracker, Tracker, table_of

logger = logging.getLogger(__name__)


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

        name, columns, rows = table_of(samples)
        self.run.log({name: trackio.Table(columns=columns, data=rows)}, step=step)

    def upload(self, adapter: Path) -> None:
        """Nothing: the rules of the recipe refuse it."""

    def finish(self, status: str) -> None:
        """Wait until the database has everything."""
        import trackio

        # Not self.run.finish(): that leaves the run for Trackio to finish, and to announce, again at exit.
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


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

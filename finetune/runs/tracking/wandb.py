"""wandb: online with an account, else offline files."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.disk import make_private
from finetune.recipe.schema.tracking import TrackingSection
from finetune.recipe.secrets import scrubbed
from finetune.runs.folder import WANDB
from finetune.runs.tracking.base import GeneratedSample, NoTracker, Tracker, table_of
from finetune.runs.tracking.wandb_settings import NO_ACCOUNT, Mode, has_account, open_settings, wandb_mode

logger = logging.getLogger(__name__)

FINISH_SECONDS, UPLOAD_SECONDS = 120.0, 3600.0
"""How long wandb's server may take for what is outstanding at the end of a run: metrics, which it was sent
all along, or an adapter too."""


class WandbTracker:
    """A wandb run: online with an account, else offline files that `wandb sync` uploads later."""

    def __init__(
        self, section: TrackingSection, run_id: str, recipe: dict[str, Any], folder: Path, mode: Mode
    ):
        import wandb

        self.section, self.run_id = section, run_id
        settings = open_settings(
            run_id, str(folder), UPLOAD_SECONDS if section.upload_adapter else FINISH_SECONDS
        )
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

        name, columns, rows = table_of(samples)
        with_step = [[step, *row] for row in rows]
        self.run.log({name: wandb.Table(columns=["step", *columns], data=with_step)}, step=step)

    def upload(self, adapter: Path) -> None:
        """The adapter's folder as an artifact of the run."""
        import wandb

        if self.section.upload_adapter:
            artifact = wandb.Artifact(f"{self.run_id}-adapter", type="model")
            artifact.add_dir(str(adapter))
            self.run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        """Write what is outstanding; a server that doesn't take it isn't waited for any longer."""
        written = self.run.settings.sync_dir
        try:
            self.run.finish(exit_code=int(status == "failed"))
        except TimeoutError:
            logger.warning(
                f"wandb's server doesn't take what is outstanding, and is waited for no longer: `wandb sync "
                f"{written}` uploads it later"
            )


@contextlib.contextmanager
def _command_line_without_secrets() -> Iterator[None]:
    """wandb keeps the arguments that the process was started with."""
    arguments = sys.argv
    sys.argv = [scrubbed(argument) for argument in arguments]
    try:
        yield
    finally:
        sys.argv = arguments


def start_wandb(section: TrackingSection, run_id: str, recipe: dict[str, Any], folder: Path) -> Tracker:
    """wandb in the mode that recipe and environment ask for; what wasn't asked for is said."""
    mode = wandb_mode(section)
    if mode == "disabled":
        logger.info("WANDB_MODE is disabled: nothing goes to wandb; metrics.jsonl is written")
        return NoTracker()
    if mode == "offline" and section.wandb_mode == "auto" and not has_account():
        logger.info(f"{NO_ACCOUNT}: the run is written offline, and `wandb sync` uploads it later")
    return WandbTracker(section, run_id, recipe, folder, mode)

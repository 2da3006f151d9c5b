"""MLflow: a server (MLFLOW_TRACKING_URI), or MLflow's own default, mlflow.db in the working folder.

The recipe is the run's parameters; see https://mlflow.org/docs/latest/ml/tracking/.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.tracking.base import GeneratedSample, Tracker, table_of
from finetune.runs.tracking.queued import QueuedTracker

logger = logging.getLogger(__name__)

RUN = "finetune.run"
"""The tag by which a resumed run is found: MLflow gives its runs ids of its own."""
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
RETRIES, SECONDS = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
"""MLflow's own seven tries of 120 s would keep a thread busy for a quarter of an hour."""
LEVEL = "MLFLOW_LOGGING_LEVEL"
LONGEST_VALUE, LONGEST_TAG = 6000, 8000
"""Characters of a parameter and of a tag (mlflow.utils.validation)."""
NAME, FOREIGN = re.compile(r"[A-Za-z0-9_-]+"), re.compile(r"[^A-Za-z0-9_/. :-]")
"""A key that a parameter's name may have, and a character that no name in MLflow has: a reward's may."""
BATCH = 100
"""Parameters at a time, at most (mlflow.utils.validation)."""


class MlflowTracker:
    """A run of MLflow, or the one that has this id already."""

    def __init__(self, section: TrackingSection, run_id: str, params: Mapping[str, str]):
        os.environ.setdefault(LEVEL, "WARNING")  # read by the import; else what it does to its tables is told
        from mlflow import MlflowClient

        os.environ.setdefault(RETRIES, "2")
        if not section.upload_adapter:  # a server that stores an adapter answers when it has stored it
            os.environ.setdefault(SECONDS, "20")
        self.client = MlflowClient()
        experiment = self._experiment(section.project)
        quote = '"' if "'" in run_id else "'"
        asked = f"tags.`{RUN}` = {quote}{run_id}{quote}"
        found = self.client.search_runs([experiment], asked, max_results=1)
        if found:
            self.run = found[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        self.run = self.client.create_run(
            experiment, tags=_tags(section, run_id), run_name=run_id
        ).info.run_id
        self._log_params(params)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _log_params(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value[:LONGEST_VALUE]) for name, value in values.items()]
        for start in range(0, len(params), BATCH):
            self.client.log_batch(self.run, params=params[start : start + BATCH])

    def log(self, metrics: dict[str, float], step: int) -> None:
        """All metrics of a step in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {FOREIGN.sub("_", name): value for name, value in metrics.items()}
        self.client.log_batch(
            self.run, metrics=[Metric(name, value, now, step) for name, value in named.items()]
        )

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """A table of prompts and answers for each step."""
        name, columns, rows = table_of(samples)
        table = {column: [row[index] for row in rows] for index, column in enumerate(columns)}
        self.client.log_table(self.run, table, f"{name}/step-{step:06}.json")

    def upload(self, adapter: Path) -> None:
        """The adapter's folder as artifacts of the run."""
        self.client.log_artifacts(self.run, str(adapter), "adapter")

    def finish(self, status: str) -> None:
        """End the run as what it is."""
        self.client.set_terminated(self.run, STATUS.get(status, "FAILED"))


def _tags(section: TrackingSection, run_id: str) -> dict[str, str]:
    tags = dict.fromkeys(section.tags, "true") | {RUN: run_id}
    if section.group is not None:
        tags["finetune.group"] = section.group
    if section.notes is not None:
        tags["mlflow.note.content"] = section.notes[:LONGEST_TAG]
    return tags


def flattened(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Each value that is set, by its path of keys; lists as they are written. So is a mapping with other keys
    than names, such as a JSON schema's `$defs`: MLflow takes no parameter of such a name."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value and all(map(NAME.fullmatch, value)):
            yield from flattened(value, f"{before}{key}.")
        elif value is not None:
            yield f"{before}{key}", str(value)


def start_mlflow(section: TrackingSection, run_id: str, recipe: dict[str, Any]) -> Tracker:
    """MLflow in a thread of its own. Raises what keeps it from starting."""
    params = dict(flattened(recipe))
    tracker = QueuedTracker(lambda: MlflowTracker(section, run_id, params), uploads=section.upload_adapter)
    # Said here: a run that trains beside others hears its own thread.
    if long := [name for name, value in params.items() if len(value) > LONGEST_VALUE]:
        logger.info(
            f"MLflow has the first {LONGEST_VALUE} characters of {', '.join(long)}; the lock has them all"
        )
    return tracker

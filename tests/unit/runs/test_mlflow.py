"""What MLflow is given, in a database of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.tracking.mlflow import flattened, start_mlflow
from tests.support.mlflow_server import own_database


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return own_database(tmp_path, monkeypatch)


def test_any_recipe_and_any_name_is_taken(client: Any) -> None:
    """A JSON schema's own keys, a reward that is called "JSON?", and a recipe bob's.yaml; begun twice, it is
    one run."""
    section = TrackingSection(tracker="mlflow", project="odd")
    schema = {"$defs": {"a": 1}, "type": "object"}
    for _ in range(2):
        tracker = start_mlflow(section, "bob's-001", {"objective": {"json_schema": schema}})
        tracker.log({"train/rewards/JSON?": 0.5}, 1)
        tracker.finish("finished")
    [run] = client.search_runs([client.get_experiment_by_name("odd").experiment_id])
    assert run.data.metrics == {"train/rewards/JSON_": 0.5}
    assert run.data.params == {"objective.json_schema": str(schema)}


@pytest.mark.long
def test_what_it_does_to_its_tables_is_not_told(tmp_path: Path) -> None:
    """A new database in the working folder, in a process that has not imported it yet."""
    code = """
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.tracking.mlflow import MlflowTracker
MlflowTracker(TrackingSection(tracker="mlflow"), "run-001", {}).finish("finished")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "mlflow.db").is_file()


def test_a_recipe_s_values_have_the_paths_of_their_keys() -> None:
    values = {"train": {"max_steps": 4, "seed": None}, "tracking": {"tags": ["a"]}, "adapter": {}}
    found = {"train.max_steps": "4", "tracking.tags": "['a']", "adapter": "{}"}
    assert dict(flattened(values)) == found

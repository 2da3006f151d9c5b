"""Runs in MLflow and over OpenTelemetry: under our names, and never in a training's way."""

import errno
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import TrackerError
from finetune.runs.folder import RunFolder
from finetune.runs.tracking import queued
from finetune.training import run, session
from tests.support.mlflow_server import mlflow_server, own_database
from tests.support.otlp import receiving
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe

STEPS = EXACT | {"max_steps": 4, "log_every": 1, "save_every": "2 steps"}
SAMPLES = {"prompts": ["Say blue."], "every_steps": 4, "max_new_tokens": 3}


def logged(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    """Steps and values of metrics.jsonl."""
    lines = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture(params=["a database", "a server"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """MLflow's client: of its database in the working folder, and of a server."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.param == "a server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server"))
    return mlflow.MlflowClient()


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's client of a database in a working folder of its own."""
    return own_database(tmp_path, monkeypatch)


def only_run(client: Any, experiment: str) -> Any:
    [found] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return found


@pytest.mark.long
def test_mlflow_has_the_run(make_recipe: MakeRecipe, database: Any, tmp_path: Path) -> None:
    """Parameters, tags, each metric of each step, a table of samples, the adapter; and a run that is resumed
    is the same run."""
    tracking = {
        "tracker": "mlflow", "project": "a project", "group": "a group", "tags": ["a-tag"], "notes": "why",
        "upload_adapter": True, "samples": SAMPLES,
    }  # fmt: skip
    folder = start(make_recipe(train=STEPS, tracking=tracking))
    found = only_run(database, "a project")
    assert found.info.status == "FINISHED"
    assert found.data.params["train.max_steps"] == "4"
    assert found.data.tags["a-tag"] == "true"
    assert found.data.tags["finetune.group"] == "a group"
    assert found.data.tags["mlflow.note.content"] == "why"
    history = database.get_metric_history(found.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == logged(folder, "train/loss")
    assert "eval/loss" in found.data.metrics
    adapter = {entry.path for entry in database.list_artifacts(found.info.run_id, "adapter")}
    assert "adapter/adapter_model.safetensors" in adapter
    table = database.download_artifacts(found.info.run_id, "samples/step-000004.json", str(tmp_path))
    assert json.loads(Path(table).read_text())["columns"] == ["prompt", "answer"]

    for lost in (folder.checkpoints / "checkpoint-4", folder.adapter):
        shutil.rmtree(lost)
    folder.summary_path.unlink()
    run.resume(folder.path, recipe=None)
    again = only_run(database, "a project")
    assert (again.info.run_id, again.info.status) == (found.info.run_id, "FINISHED")


@pytest.mark.long
def test_mlflow_says_that_a_run_failed(
    make_recipe: MakeRecipe, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training.trainer import ExactTrainer

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(ExactTrainer, "training_step", breaks)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by the environment")
    with pytest.raises(RuntimeError, match="broken"):
        start(make_recipe(train=STEPS | {"rehearsal": False}, tracking={"tracker": "mlflow"}))
    assert only_run(database, "by the environment").info.status == "FAILED"


@pytest.mark.long
def test_an_adapter_is_uploaded_with_its_card(make_recipe: MakeRecipe, local: Any, tmp_path: Path) -> None:
    """The one that the run folder has in the end, and not peft's empty form."""
    tracking = {"tracker": "mlflow", "project": "card", "upload_adapter": True}
    folder = start(make_recipe(train=STEPS | {"max_steps": 1}, tracking=tracking))
    card = local.download_artifacts(only_run(local, "card").info.run_id, "adapter/README.md", str(tmp_path))
    assert Path(card).read_text() == (folder.adapter / "README.md").read_text()


@pytest.mark.long
def test_a_run_that_could_not_be_finished_failed_for_its_tracker_too(
    make_recipe: MakeRecipe, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when its card is written: the tracker says what the summary says."""

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "README.md")

    monkeypatch.setattr(session, "write_result_card", no_room)
    recipe = make_recipe(train=STEPS | {"max_steps": 1}, tracking={"tracker": "mlflow", "project": "no room"})
    with pytest.raises(OSError, match="No space left"):
        start(recipe)
    status = RunFolder(Path(recipe.output.folder) / "run-001").outcome()["status"]
    assert (status, only_run(local, "no room").info.status) == ("failed", "FAILED")


@pytest.mark.long
def test_a_parameter_that_is_too_long_for_mlflow_is_said(make_recipe: MakeRecipe, database: Any) -> None:
    """Its beginning is there."""
    tracking = {"tracker": "mlflow", "project": "long values", "notes": "x" * 9000}
    folder = start(make_recipe(train=STEPS | {"max_steps": 1}, tracking=tracking))
    data = only_run(database, "long values").data
    assert len(data.params["tracking.notes"]) == 6000
    assert len(data.tags["mlflow.note.content"]) == 8000
    assert "first 6000 characters of tracking.notes" in folder.log_path.read_text()


def test_telemetry_reaches_a_collector(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of every step, with the run, its group and the environment's headers."""
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=us")
        folder = start(
            make_recipe(train=STEPS, tracking={"tracker": "opentelemetry", "project": "p", "group": "g"})
        )
    values = [value for _, value in logged(folder, "train/loss")]
    points = receiver.points("train/loss")
    assert [value for value, _ in points] == values
    assert len({name for _, name in points}) == 1
    assert {1.0, 2.0, 3.0, 4.0} <= {value for value, _ in receiver.points("step")}
    assert len(receiver.points("eval/loss")) == len(logged(folder, "eval/loss"))
    resource = receiver.resource()
    assert (resource["service.name"], resource["finetune.project"], resource["finetune.group"]) == (
        "finetune",
        "p",
        "g",
    )
    assert all(headers["x-tenant"] == "us" for headers in receiver.headers)
    assert not (folder.path / "telemetry.jsonl").exists()


def test_telemetry_without_a_collector_is_a_file(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In OTLP's own JSON, which is read back as such."""
    from google.protobuf.json_format import Parse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    folder = start(make_recipe(train=STEPS, tracking={"tracker": "opentelemetry"}))
    values = []
    for line in (folder.path / "telemetry.jsonl").read_text().splitlines():
        request = Parse(line, ExportMetricsServiceRequest())
        for metric in request.resource_metrics[0].scope_metrics[0].metrics:
            if metric.name == "train/loss":
                values += [point.as_double for point in metric.gauge.data_points]
    assert values == [value for _, value in logged(folder, "train/loss")]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_mlflow_is_refused_before_the_first_step(
    make_recipe: MakeRecipe, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seconds, and without a run folder."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent)
    monkeypatch.setattr(queued, "ANSWER_SECONDS", 1.0)
    recipe = make_recipe(train=STEPS, tracking={"tracker": "mlflow"})
    with pytest.raises(
        TrackerError, match=r"tracking\.tracker mlflow could not start \(TimeoutError: no answer"
    ):
        start(recipe)
    assert list(Path(recipe.output.folder).iterdir()) == []


def test_a_silent_collector_holds_up_no_step(
    make_recipe: MakeRecipe, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not taken is said once at the end, and metrics.jsonl has it all."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent)
    monkeypatch.setattr(queued, "ANSWER_SECONDS", 1.0)
    before = time.monotonic()
    folder = start(make_recipe(train=STEPS, tracking={"tracker": "opentelemetry"}))
    assert folder.read_summary()["status"] == "finished"
    assert len(logged(folder, "train/loss")) == 4
    said = "the tracker opentelemetry failed (TimeoutError: what was logged last has not arrived within 1 s)"
    assert folder.log_path.read_text().count(said) == 1
    assert time.monotonic() - before < 60

"""wandb's own variables hold where the recipe says nothing; the files that it writes are read back with its
own protocol."""

import inspect
import os
import time
from pathlib import Path

import pytest
import trackio
import wandb
import wandb.env
from wandb.proto import wandb_internal_pb2

from finetune.errors import TrackerError
from finetune.recipe import tracking
from finetune.recipe.load import load_recipe
from finetune.recipe.lock import read_lock
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.tracking.start import start_tracker
from finetune.runs.tracking.trackio import TrackioTracker
from finetune.runs.tracking.wandb_settings import wandb_mode
from tests.support.messages import hearing
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe
from tests.unit.runs.wandb_files import wandb_records

KEY = "a" * 40


@pytest.fixture(autouse=True)
def _nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable, no settings file, no ~/.netrc of the machine that runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def run_of(folder: Path) -> wandb_internal_pb2.RunRecord:
    """The run as an offline file has it; wandb's own process writes it, on a busy machine a moment after
    finish()."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in folder.rglob("*.wandb"):
            for data in wandb_records(path.read_bytes()):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                if record.HasField("run"):
                    return record.run
        time.sleep(0.1)
    raise AssertionError(f"{folder} has no run")


def written(section: TrackingSection, folder: Path) -> wandb_internal_pb2.RunRecord:
    """What a run with that section leaves."""
    tracker = start_tracker("wandb", section, "id-1", {}, folder=folder)
    tracker.finish("finished")
    return run_of(folder)


def test_the_environment_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Project, entity, group, tags, notes, name and folder are the environment's; the id stays the run's
    own."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    values = {
        "PROJECT": "its-project", "ENTITY": "its-team", "RUN_GROUP": "its-group", "TAGS": "one, two",
        "NOTES": "see #42", "NAME": "its name", "DIR": str(elsewhere), "JOB_TYPE": "its-job",
        "MODE": "offline", "API_KEY": KEY,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = written(TrackingSection(tracker="wandb"), elsewhere)
    assert (run.project, run.entity, run.run_group, run.notes) == (
        "its-project",
        "its-team",
        "its-group",
        "see #42",
    )
    assert (run.display_name, run.job_type, sorted(run.tags), run.run_id) == (
        "its name",
        "its-job",
        ["one", "two"],
        "id-1",
    )
    assert not (tmp_path / "wandb").exists()


def test_the_recipe_goes_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written in the recipe holds against the environment, one key at a time."""
    monkeypatch.setenv("WANDB_PROJECT", "its-project")
    monkeypatch.setenv("WANDB_TAGS", "its-tag")
    monkeypatch.setenv("WANDB_NOTES", "its notes")
    run = written(TrackingSection(tracker="wandb", project="mine", tags=("my-tag",)), tmp_path)
    assert (run.project, list(run.tags), run.notes) == ("mine", ["my-tag"], "its notes")


def test_the_lock_holds_what_the_environment_said(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's lock has the project and the id that it went by, so that it resumes there."""
    monkeypatch.setenv("WANDB_PROJECT", "its-project")
    monkeypatch.setenv("WANDB_RUN_ID", "its-id")
    done = start(make_recipe(train=EXACT | {"max_steps": 1}, tracking={"tracker": "wandb"}))
    lock = read_lock(done.lock_path)
    assert (lock.recipe.tracking.project, lock.tracker_id) == ("its-project", "its-id")
    assert (run_of(done.path).project, run_of(done.path).run_id) == ("its-project", "its-id")


def test_check_says_where_a_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The origin of a value that the environment decides is the variable; Trackio's runs don't follow
    wandb's."""
    monkeypatch.setenv("WANDB_PROJECT", "its-project")
    loaded = load_recipe("quickstart", ["tracking.tracker=wandb"])
    assert (loaded.recipe.tracking.project, loaded.origins["tracking.project"]) == (
        "its-project",
        "WANDB_PROJECT",
    )
    assert load_recipe("quickstart", []).recipe.tracking.project == "finetune"


@pytest.mark.parametrize(
    ("asked", "said", "key", "mode"),
    [
        ("auto", None, True, "online"),
        ("auto", None, False, "offline"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "disabled", True, "disabled"),
        ("auto", "online", True, "online"),
        ("offline", "online", True, "offline"),
        ("offline", None, True, "offline"),
        ("offline", "disabled", True, "disabled"),
        ("online", None, True, "online"),
        ("auto", "online", False, None),
        ("online", None, False, None),
        ("online", "offline", True, None),
        ("online", "disabled", True, None),
        ("auto", "banana", True, None),
    ],
)
def test_the_mode(
    asked: str, said: str | None, key: bool, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never online against WANDB_MODE, never offline in silence where online was asked for."""
    if said is not None:
        monkeypatch.setenv("WANDB_MODE", said)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    section = TrackingSection.model_validate({"tracker": "wandb", "wandb_mode": asked})
    if mode is None:
        with pytest.raises(TrackerError):
            wandb_mode(section)
    else:
        assert wandb_mode(section) == mode


def test_disabled_writes_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_MODE=disabled leaves no file of wandb's."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said: list[str] = []
    with hearing(said.append):
        tracker = start_tracker("wandb", TrackingSection(tracker="wandb"), "id-1", {}, folder=tmp_path)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish("finished")
    assert list(tmp_path.iterdir()) == []
    assert len(said) == 1
    assert "disabled" in said[0]


def test_an_account_in_netrc_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb login` writes ~/.netrc; for another host than the one that WANDB_BASE_URL names there is no
    account."""
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    (tmp_path / "netrc").write_text(f"machine wandb.example.org login user password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_mode(TrackingSection(tracker="wandb")) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example.org")
    assert wandb_mode(TrackingSection(tracker="wandb")) == "offline"


def test_going_offline_for_want_of_an_account_is_said(tmp_path: Path) -> None:
    """One line, and none where the environment or the recipe asked for offline."""
    said: list[str] = []
    for mode in ("auto", "offline"):
        section = TrackingSection.model_validate({"tracker": "wandb", "wandb_mode": mode})
        with hearing(said.append):
            start_tracker("wandb", section, f"id-{mode}", {}, folder=tmp_path).finish("finished")
    assert len(said) == 1
    assert "WANDB_API_KEY" in said[0]


def test_the_variables_are_the_libraries_own() -> None:
    """wandb spells its variables so; Trackio has none for what it is told here."""
    assert set(tracking.VARIABLES["wandb"].values()) == {
        wandb.env.PROJECT,
        wandb.env.RUN_GROUP,
        wandb.env.TAGS,
        wandb.env.NOTES,
    }
    assert wandb.env.RUN_ID == tracking.RUN_ID
    told = ("PROJECT", "NAME", "GROUP", "RESUME", "EMBED", "AUTO_LOG_CPU")
    assert all(f"{name.lower()}=" in inspect.getsource(TrackioTracker) for name in told)
    sources = "".join(path.read_text() for path in Path(trackio.__file__).parent.glob("*.py"))
    assert not [name for name in told if f"TRACKIO_{name}" in sources]

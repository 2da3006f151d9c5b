"""Commands that a board starts: real processes, which outlive it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from finetune.board.app import Board
from finetune.board.jobs import BoardJob, Jobs
from finetune.board.workspace import RecipeText, Workspace
from finetune.errors import FinetuneError
from tests.support.runs import make_run

LASTING = ["board", "--port", "0"]
"""A command that runs until it is stopped, and loads no torch."""


def ended(job: BoardJob) -> BoardJob:
    until(lambda: job.state != "running", job)
    return job


def until(holds: Callable[[], bool], job: BoardJob) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends, job.output()
        time.sleep(0.05)


@pytest.fixture
def jobs(board: Board) -> Jobs:
    return board.jobs


@pytest.fixture
def lasting(jobs: Jobs, folder: Path) -> BoardJob:
    """It runs, and has said where it listens."""
    job = jobs.start(LASTING, "x.yaml", folder)
    until(lambda: "http://" in job.output(), job)
    return job


def test_a_command_s_output_and_end_are_kept(jobs: Jobs, folder: Path) -> None:
    """For another board too, that begins later."""
    job = ended(jobs.start(["check", "nothing.yaml"], "nothing.yaml", folder))
    later = Jobs(jobs.folder).find(job.name)
    assert later is not None
    assert (later.state, later.code, later.command) == ("failed", 2, "finetune check nothing.yaml")
    assert "no such recipe" in later.output()
    assert later.ending.startswith("refused")


def test_a_module_of_the_working_folder_is_not_ours(jobs: Jobs, folder: Path) -> None:
    """A script that has the name of one of Python's, or of finetune itself."""
    for name in ("json.py", "finetune.py"):
        (folder / name).write_text("raise SystemExit('not this one')\n")
    assert "no such recipe" in ended(jobs.start(["check", "nothing.yaml"], "nothing.yaml", folder)).output()


def test_a_command_that_can_t_be_started_says_so(jobs: Jobs, folder: Path) -> None:
    """Words that are longer than the system takes."""
    job = ended(jobs.start(["check", "x.yaml", "model.base=" + "x" * 2**18], "x.yaml", folder))
    assert "can't be started" in job.output()


def test_the_ten_thousandth_command_is_newer_than_the_one_before(jobs: Jobs, folder: Path) -> None:
    """And is not the first to be forgotten."""
    last = ended(jobs.start(["check", "x.yaml"], "x.yaml", folder))
    last.folder.rename(last.folder.with_name("9999"))
    ended(jobs.start(["check", "y.yaml"], "y.yaml", folder))
    assert [job.name for job in jobs.all()] == ["10000", "9999"]


def test_a_command_outlives_its_board_and_can_be_stopped_by_another(lasting: BoardJob) -> None:
    """It is found running by a board that begins later, which stops it; the process is gone then."""
    later = Jobs(lasting.folder.parent).find(lasting.name)
    assert later is not None
    process = later.process
    assert process is not None
    assert os.getsid(process) == process, "it would end with the board's terminal"
    later.stop()
    assert ended(later).state == "stopped"
    with pytest.raises(FinetuneError, match="has ended already"):
        later.stop()


def test_a_command_that_is_stopped_at_once_has_stopped(jobs: Jobs, folder: Path) -> None:
    """Not failed: the signal waits until somebody can pass it on."""
    job = jobs.start(LASTING, "x.yaml", folder)
    job.stop()
    assert ended(job).state == "stopped"


def test_the_same_command_is_not_started_twice(lasting: BoardJob, jobs: Jobs, folder: Path) -> None:
    """From a second tab, say: one message."""
    with pytest.raises(FinetuneError, match="runs already"):
        jobs.start(LASTING, "x.yaml", folder)
    assert len(jobs.all()) == 1


def test_the_same_words_in_another_folder_are_another_command(
    lasting: BoardJob, jobs: Jobs, folder: Path
) -> None:
    """Two boards of two folders can have one folder of runs."""
    other = folder / "other"
    other.mkdir()
    (other / "x.yaml").write_text("extends: quickstart\n")
    job = ended(jobs.start(["check", "x.yaml"], "x.yaml", other))
    board = Board(Workspace(other, folder / "runs"))
    assert board.jobs.running(lasting.command, other) is None
    assert str(other) in board.pages.job(job)
    mine = Board(Workspace(folder, folder / "runs")).pages.recipe(RecipeText("x.yaml", ""))
    assert f"/jobs/{job.name}" not in mine


def test_a_command_that_was_killed_is_not_said_to_run(lasting: BoardJob) -> None:
    """Nor to have ended well; what it ran ends too."""
    process = lasting.process
    assert process is not None
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    os.kill(process, signal.SIGKILL)
    assert ended(lasting).state == "failed"
    assert "killed" in lasting.ending
    assert children
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), lasting)


def test_a_long_output_is_shown_from_its_end(jobs: Jobs, folder: Path) -> None:
    """And a page of it stays small."""
    job = ended(jobs.start(["schema"], "x.yaml", folder))
    shown = job.output()
    assert len(shown) < 70_000 < (job.folder / "output.log").stat().st_size
    assert shown.endswith("}\n")


def test_what_is_kept_is_private(jobs: Jobs, folder: Path) -> None:
    """Folders and files are their owner's alone."""
    job = ended(jobs.start(["check", "quickstart"], "quickstart", folder))
    modes = [path.stat().st_mode & 0o077 for path in [jobs.folder, job.folder, *job.folder.iterdir()]]
    assert not any(modes), list(job.folder.iterdir())


def test_an_action_leads_to_its_command_s_page(user: TestClient, board: Board, folder: Path) -> None:
    """Which shows the command, what it says, and how it ended, as text."""
    (folder / "x.yaml").write_text("model: {base: '<b>x</b>'}\n")
    answer = user.post("/start", data={"verb": "check", "about": "x.yaml"})
    (job,) = board.jobs.all()
    assert answer.headers["location"] == f"/jobs/{job.name}"
    ended(job)
    page = user.get(answer.headers["location"]).text
    assert "finetune check x.yaml --deep" in page
    assert "refused: the last lines say why" in page
    assert "<b>x" not in page


def test_runs_are_listed_and_compared(user: TestClient, folder: Path) -> None:
    """Those of the runs folder, whoever has trained them."""
    for loss in (1.0, 2.0):
        make_run(folder / "runs", "orders", loss=loss)
    page = user.get("/").text
    assert page.index("orders-002") < page.index("orders-001")
    compared = user.get("/compare?run=orders-001&run=orders-002").text
    assert "Metrics side by side" in compared
    assert "finetune report runs/orders-001 runs/orders-002 --html compared.html" in compared
    assert user.get("/compare?run=orders-001").status_code == 400


def test_a_run_s_page_is_its_report_with_what_can_be_done(user: TestClient, folder: Path) -> None:
    """Each action with its command."""
    make_run(folder / "runs", "orders", loss=1.0)
    page = user.get("/runs/orders-001").text
    assert "What was trained on what" in page
    assert "finetune export runs/orders-001 --format gguf" in page
    assert "finetune serve tuned=runs/orders-001 --with-base --port 0" in page


@pytest.mark.parametrize("name", ["nothing", "..", ".board"])
def test_what_is_no_run_is_said_to_be_none(name: str, user: TestClient) -> None:
    """One message, no trace of a bug."""
    assert user.get(f"/runs/{name.replace('.', '%2E')}").status_code in (400, 404)


TRAINS = """
import signal, sys
from pathlib import Path
from finetune.runs.folder import RunFolder
RunFolder(Path(sys.argv[1])).claim()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("claimed", flush=True)
signal.pause()
"""


def test_a_run_of_a_terminal_can_be_stopped(folder: Path, user: TestClient) -> None:
    """By the process that its lock names, as the page's command says."""
    run = make_run(folder / "runs", "orders", loss=1.0)
    command = [sys.executable, "-c", TRAINS, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "claimed\n"
        assert f"kill {training.pid}" in user.get(f"/runs/{run.name}").text
        user.post(f"/runs/{run.name}/stop")
        assert training.wait(timeout=30) == 75


def test_a_run_that_nobody_trains_can_t_be_stopped(folder: Path, user: TestClient) -> None:
    """One message."""
    make_run(folder / "runs", "orders", loss=1.0)
    answer = user.post("/runs/orders-001/stop", headers={"Accept": "application/json"})
    assert answer.json()["error"] == "no process of this machine trains orders-001: there is nothing to stop."


def test_a_taken_run_name_is_refused(user: TestClient, folder: Path) -> None:
    """A second tab that was loaded before the first one's run began."""
    (folder / "x.yaml").write_text("extends: quickstart\n")
    make_run(folder / "runs", "x", loss=1.0)
    answer = user.post(
        "/start",
        data={"verb": "train", "about": "x.yaml", "run": "x-001"},
        headers={"Accept": "application/json"},
    )
    assert "x-001 is there already (from another tab?)" in answer.json()["error"]


def test_the_next_run_has_the_next_name(folder: Path) -> None:
    """As `finetune train` would name it."""
    make_run(folder / "runs", "orders", loss=1.0)
    assert Workspace(folder, folder / "runs").free_run("orders") == "orders-002"


def test_a_page_that_a_command_has_written_runs_nothing(jobs: Jobs, folder: Path, user: TestClient) -> None:
    """Nor is it of the board's origin, whoever has put it there."""
    job = ended(jobs.start(["check", "quickstart"], "quickstart", folder))
    assert user.get(f"/jobs/{job.name}/page").status_code == 400
    (job.folder / "audit.html").write_text("<script>parent.location = '/'</script>")
    policy = user.get(f"/jobs/{job.name}/page").headers["content-security-policy"]
    assert policy == "sandbox; frame-ancestors 'self'"


def test_a_name_with_markup_is_text(user: TestClient, folder: Path) -> None:
    """Of a run and of a recipe, wherever it is shown."""
    name = "<img src=x onerror=alert(1)>"
    run = make_run(folder / "runs", name, loss=1.0)
    (folder / f"{name}.yaml").write_text("extends: quickstart\n")
    pages = [
        user.get(path).text for path in ("/", f"/runs/{quote(run.name)}", f"/recipes/{quote(name)}.yaml")
    ]
    assert all("&lt;img" in page and "<img" not in page for page in pages)

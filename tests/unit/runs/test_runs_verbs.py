"""finetune runs list, show, diff, plot and rm, as a person types them."""

import json
import sys
from pathlib import Path

import pytest

from finetune.cli import app as command_line
from finetune.errors import RecipeError
from finetune.recipe.lock import Lock, read_lock
from finetune.runs.compare import compare
from finetune.runs.folder import RunFolder
from tests.support.runs import make_run


def runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """`finetune runs WORDS`: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["finetune", "runs", *words])
    code = command_line.run()
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_any_value_is_a_column_a_condition_and_an_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs are chosen and sorted by metrics and by values of their recipes; damaged ones are listed as
    damaged."""
    for rate, loss in ((1e-4, 3.0), (5e-4, 1.0), (1e-3, 2.0)):
        make_run(tmp_path, "a", loss=loss, learning_rate=rate)
    damaged = make_run(tmp_path, "z", loss=9.0)
    damaged.summary_path.write_text("{")
    words = ["list", str(tmp_path), "--where", "train.learning_rate>=5e-4", "--sort", "evaluation_loss"]
    code, shown, _ = runs(
        monkeypatch, capsys, *words, "--columns", "name,train.learning_rate,evaluation_loss"
    )
    assert code == 0
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["a-002", "0.0005", "1.0000"],
        ["a-003", "0.001", "2.0000"],
    ]
    _, shown, _ = runs(
        monkeypatch, capsys, "list", str(tmp_path), "--sort", "evaluation_loss", "--reverse", "--json"
    )
    assert [run["name"] for run in json.loads(shown)] == ["a-001", "a-003", "a-002", "z-001"]
    assert "damaged" in runs(monkeypatch, capsys, "list", str(tmp_path), "--where", "status=damaged")[1]
    code, _, error = runs(monkeypatch, capsys, "list", str(tmp_path), "--sort", "speed")
    assert code == 2
    assert "no run has a value 'speed'; expected one of" in error
    code, _, error = runs(monkeypatch, capsys, "list", str(tmp_path), "--where", "loss")
    assert code == 2
    assert "expected KEY OPERATOR VALUE" in error


def test_a_comparison_says_what_is_most_likely_first(tmp_path: Path) -> None:
    """Other data come before another learning rate, that before packages, those before threads; output has no
    effect."""
    first, second = (
        make_run(tmp_path, "a", loss=1.0),
        make_run(tmp_path, "b", loss=2.0, learning_rate=3e-4, seed=7),
    )
    locks = [read_lock(run.lock_path) for run in (first, second)]
    locks[1].data["rows.jsonl"] = "c" * 64
    locks[1].versions["torch"] = "2.14.0"
    locks[1].device["threads"] = 8
    moved = locks[1].recipe.output.model_copy(update={"folder": "/elsewhere"})
    other = Lock(**(vars(locks[1]) | {"recipe": locks[1].recipe.model_copy(update={"output": moved})}))
    found = compare(locks[0], other, (first.read_summary(), second.read_summary()))
    assert found.metrics["evaluation_loss"] == (1.0, 2.0)
    assert [(line.group, line.name) for line in found.differences] == [
        ("data", "rows.jsonl"),
        ("recipe", "train.learning_rate"),
        ("seed", "train.seed"),
        ("versions", "torch"),
        ("device", "threads"),
    ]


def test_diff_show_and_plot_print_what_a_person_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """diff names what could explain a difference; plot draws both runs, in characters and as a PNG."""
    first, second = make_run(tmp_path, "a", loss=1.0), make_run(tmp_path, "b", loss=2.0, learning_rate=3e-4)
    names = [str(first.path), str(second.path)]
    _, shown, _ = runs(monkeypatch, capsys, "diff", *names)
    assert "different recipe:\n  train.learning_rate  0.0001  0.0003" in shown
    _, shown, _ = runs(monkeypatch, capsys, "diff", names[0], names[0])
    assert "nothing that is recorded differs" in shown
    assert (
        json.loads(runs(monkeypatch, capsys, "show", names[0], "--json")[1])["summary"]["evaluation_loss"]
        == 1.0
    )
    _, shown, _ = runs(monkeypatch, capsys, "plot", *names, "--metrics", "train/loss")
    assert "train/loss" in shown
    assert "b-001" in shown
    assert "\x1b" not in shown
    picture = tmp_path / "curves.png"
    assert runs(monkeypatch, capsys, "plot", *names, "--output", str(picture))[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, error = runs(monkeypatch, capsys, "plot", names[0], "--metrics", "train/speed")
    assert code == 2
    assert "none of the runs has train/speed; they have train/learning_rate, train/loss" in error


def test_rm_asks_and_leaves_running_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --yes and without a terminal nothing is deleted; nor is a run that a process trains."""
    run = make_run(tmp_path, "a", loss=1.0)
    code, _, error = runs(monkeypatch, capsys, "rm", str(run.path))
    assert code == 2
    assert "give --yes" in error
    holder = RunFolder(run.path)
    holder.claim()
    code, _, error = runs(monkeypatch, capsys, "rm", str(run.path), "--yes")
    assert code == 2
    assert "is being trained by" in error
    assert run.lock_path.is_file()
    holder.release()
    (run.path / "adapter.failed").mkdir()  # a result that didn't read back as it was trained
    assert runs(monkeypatch, capsys, "rm", str(run.path), "--yes")[0] == 0
    assert not run.path.exists()


def test_a_lock_of_the_first_version_is_read(tmp_path: Path) -> None:
    """It lacks origins and git; a version that isn't known is refused by its number."""
    run = make_run(tmp_path, "a", loss=1.0)
    text = run.lock_path.read_text()
    run.lock_path.write_text(
        text.replace("lock_version: 3", "lock_version: 1")
        .replace("git: {}\n", "")
        .replace("origins: {}\n", "")
    )
    assert read_lock(run.lock_path).origins == {}
    run.lock_path.write_text(text.replace("lock_version: 3", "lock_version: 4"))
    with pytest.raises(Exception, match="lock_version is 4; this version of finetune reads 1 and 2 and 3"):
        read_lock(run.lock_path)


def test_a_lock_whose_final_figures_are_no_table_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", loss=1.0)
    run.lock_path.write_text(run.lock_path.read_text().replace("final: {}\n", "final: [1]\n"))
    with pytest.raises(RecipeError, match="not a lock: final is a list"):
        read_lock(run.lock_path)


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("name~002", ["a-002"]),
        ("output.name=null", ["a-001", "a-002"]),
        ("train.rehearsal=True", ["a-001", "a-002"]),
        ("tracking.project=finetune", ["a-001", "a-002"]),
        ("steps=true", []),
        ("train.learning_rate=1e-4", ["a-001", "a-002"]),
    ],
)
def test_a_condition_means_what_it_says(
    condition: str,
    found: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Texts are compared as typed, numbers as numbers, truths with truths."""
    for loss in (1.0, 2.0):
        make_run(tmp_path, "a", loss=loss)
    _, shown, _ = runs(monkeypatch, capsys, "list", str(tmp_path), "--where", condition, "--json")
    assert [run["name"] for run in json.loads(shown)] == found


@pytest.mark.parametrize("condition", ["status==finished", "steps=>3", "steps>=", "loss"])
def test_a_condition_that_is_none_is_refused(
    condition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the hand is an error, not an empty list."""
    make_run(tmp_path, "a", loss=1.0)
    code, _, error = runs(monkeypatch, capsys, "list", str(tmp_path), "--where", condition)
    assert code == 2
    assert "expected KEY OPERATOR VALUE" in error


@pytest.mark.parametrize(
    ("name", "content", "verb"),
    [
        ("summary.json", b"\xff\xfe", "show"),
        ("metrics.jsonl", b"5\n6\n", "plot"),
        ("metrics.jsonl", b'{"train/loss": 1}\n{"step": 1}\n', "plot"),
        ("metrics.jsonl", b'{"step": 1, "train/loss": "x"}\n{"step": 2}\n', "plot"),
        ("recipe.lock.yaml", b"lock_version: 2\nrecipe: {}\ndevice: null\n", "show"),
    ],
)
def test_a_damaged_run_is_one_message(
    name: str,
    content: bytes,
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the list of the others goes on."""
    run = make_run(tmp_path, "a", loss=1.0)
    make_run(tmp_path, "b", loss=2.0)
    (run.path / name).write_bytes(content)
    code, _, error = runs(monkeypatch, capsys, verb, str(run.path))
    assert code == 2
    assert "Traceback" not in error
    code, shown, _ = runs(monkeypatch, capsys, "list", str(tmp_path))
    assert code == 0
    assert "b-001" in shown


def test_rm_deletes_nothing_that_no_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A project with an empty lock in it, or a run with somebody's thesis in it, is left alone."""
    run = make_run(tmp_path, "a", loss=1.0)
    (run.path / "thesis.tex").write_text("years of work")
    code, _, error = runs(monkeypatch, capsys, "rm", str(run.path), "--yes")
    assert code == 2
    assert "thesis.tex, which no run writes" in error
    (run.path / "thesis.tex").unlink()
    run.lock_path.write_text("")
    assert runs(monkeypatch, capsys, "rm", str(run.path), "--yes")[0] == 2
    assert run.summary_path.is_file()

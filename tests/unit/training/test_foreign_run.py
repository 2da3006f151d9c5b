"""A run folder that somebody else made: nothing outside of it is written, emptied or deleted, and nothing
waits for ever."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training import run
from tests.support.cli import Result

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before its result was written, with every kind of file that a run has."""
    folder = tmp_path_factory.mktemp("foreign")
    rows = [{"instruction": f"Say {n}.", "output": f"{n} lamps"} for n in range(20)]
    (folder / "rows.json").write_text(json.dumps(rows))
    tree = {
        "model": {"base": str(tiny_base)},
        "adapter": {"rank": 2},
        "data": {
            "train": [{"path": str(folder / "rows.json"), "format": "alpaca"}],
            "evaluation": {"fraction": 0.2},
            "max_length_tokens": 64,
        },
        "train": {"max_steps": 2, "save_every": 1, "precision": "fp32", "global_batch_size": 2},
        "evaluate": {"metrics": ["exact_match"], "max_new_tokens": 2},
        "tracking": {"tracker": "none", "samples": {"prompts": ["Say 1."], "max_new_tokens": 2}},
        "output": {"folder": str(folder / "runs")},
    }
    summary = run.start(Recipe.model_validate(tree), name="run", command="finetune train").summary
    path = folder / "runs" / summary["name"]
    RunFolder(path).write_summary(summary | {"status": "running"})
    return path


@pytest.fixture
def foreign(made: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(made, tmp_path / "foreign"))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """What is the user's own: a folder with a file."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "precious.txt").write_text("as it was")
    return tmp_path / "kept"


def as_it_was(kept: Path) -> bool:
    """Whether nothing happened to what is the user's own."""
    return [path.name for path in kept.iterdir()] == ["precious.txt"] and (
        kept / "precious.txt"
    ).read_text() == "as it was"


FILES = (
    ".running", "run.log", "metrics.jsonl", "samples.jsonl", "data.json", "plan.json", "summary.json",
    "recipe.lock.yaml", "logs/rank-1.log", "predictions/final.jsonl",
    "checkpoints/checkpoint-2/complete.json", ".summary.json.partial", ".recipe.lock.yaml.partial",
)  # fmt: skip
FOLDERS = (
    "checkpoints", "checkpoints/checkpoint-1", "checkpoints/checkpoint-3", "adapter", "model", "predictions",
    "logs", "wandb", "tensorboard", ".adapter.partial", ".adapter.old", ".wandb",
)  # fmt: skip


def put_in_place(path: Path, make: Callable[[Path], object]) -> None:
    """Make something in the place of a file or folder of a run, which is moved into it where it can be."""
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)


@pytest.mark.parametrize("verb", [("train", "--resume"), ("runs", "rm", "--yes")], ids=["resume", "rm"])
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_nothing_goes_through_a_link(
    foreign: Path, kept: Path, name: str, verb: tuple[str, ...], finetune_here: Command
) -> None:
    """Neither resume nor rm follows a link to a file or a folder, whatever of the run it stands for; they
    name it."""
    target = kept / "precious.txt" if name in FILES else kept
    content = (foreign / name).read_text() if name in ("summary.json", "recipe.lock.yaml") else "as it was"
    target.write_text(content) if target.is_file() else None
    put_in_place(foreign / name, lambda path: path.symlink_to(target))
    told = finetune_here(*verb, str(foreign), code=2)
    if (name, verb[0]) != (".wandb", "runs"):  # which no run writes
        assert f"{foreign / name}: is a link to {target}" in told.stderr
    assert [path.name for path in kept.iterdir()] == ["precious.txt"]
    assert (kept / "precious.txt").read_text() == content
    assert foreign.is_dir()


@pytest.mark.parametrize(
    ("name", "code"),
    [(".running", 2), ("run.log", 2), ("metrics.jsonl", 0), ("samples.jsonl", 0), ("recipe.lock.yaml", 2)],
)
def test_a_hard_link_is_no_way_out_either(
    foreign: Path, kept: Path, name: str, code: int, finetune_here: Command
) -> None:
    """What is emptied or added to has no other name; what is replaced leaves the file of another name
    alone."""
    put_in_place(foreign / name, lambda path: path.hardlink_to(kept / "precious.txt"))
    told = finetune_here("train", "--resume", str(foreign), code=code)
    assert "hard link" in told.stderr or name not in (".running", "run.log")
    assert as_it_was(kept)


@pytest.mark.parametrize("name", [*FILES, "checkpoints/checkpoint-2/optimizer.pt", "adapter"])
def test_nothing_waits_for_a_pipe(foreign: Path, name: str, finetune_here: Command) -> None:
    """A FIFO in the place of any file is refused by every verb that comes to it, and none hangs."""
    put_in_place(foreign / name, os.mkfifo)
    finetune_here("train", "--resume", str(foreign), code=2)
    finetune_here("runs", "rm", "--yes", str(foreign), code=2)
    finetune_here("runs", "list", str(foreign.parent))
    unread = 2 if name in ("recipe.lock.yaml", "summary.json") else 0
    finetune_here("runs", "show", str(foreign), code=unread)
    finetune_here("runs", "diff", str(foreign), str(foreign), code=unread)
    finetune_here(
        "runs", "plot", str(foreign), code=2 if name in ("recipe.lock.yaml", "metrics.jsonl") else 0
    )
    page = str(foreign.parent / "page.html")
    finetune_here("report", str(foreign), "--html", page, code=2 if name == "recipe.lock.yaml" else 0)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "recipe.lock.yaml"])
def test_an_endless_file_is_not_read(foreign: Path, name: str, finetune_here: Command) -> None:
    """A link to a device is no file of a run for those that only read either."""
    put_in_place(foreign / name, lambda path: path.symlink_to("/dev/zero"))
    finetune_here("runs", "list", str(foreign.parent))
    finetune_here("runs", "show", str(foreign), code=0 if name == "metrics.jsonl" else 2)


def test_predictions_are_kept_in_the_run_alone(
    foreign: Path, kept: Path, tmp_path: Path, finetune_here: Command
) -> None:
    """`finetune evaluate` writes nothing where a link in the place of predictions/ points, and says so before
    it measures."""
    put_in_place(foreign / "predictions", lambda path: path.symlink_to(kept))
    recipe = tmp_path / "recipe.yaml"
    rows = foreign.parent / "rows.json"
    rows.write_text('[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]')
    recipe.write_text(
        f"model: {{base: x/y}}\ndata: {{train: [{{path: {rows}, format: alpaca}}], "
        f"evaluation: {{sources: [{{path: {rows}, format: alpaca}}]}}}}\n"
    )
    told = finetune_here("evaluate", str(foreign), str(recipe), code=2)
    assert f"{foreign / 'predictions'}: is a link to {kept}" in told.stderr
    assert as_it_was(kept)


def test_what_a_merge_left_is_not_emptied_through_a_link(
    foreign: Path, kept: Path, finetune_here: Command
) -> None:
    """The folder beside a merge's output that a killed merge leaves is emptied; what a link of its name
    points to isn't."""
    (foreign / ".merged.unfinished").symlink_to(kept)
    told = finetune_here("merge", str(foreign), "--output", str(foreign / "merged"), code=2)
    assert f"{foreign / '.merged.unfinished'}: is a link to {kept}" in told.stderr
    assert as_it_was(kept)


def test_a_run_that_was_copied_whole_goes_on(foreign: Path, finetune_here: Command) -> None:
    """With half-written files of a killed process in it, which go."""
    (foreign / ".summary.json.0123abcd.partial").write_text("{")
    (foreign / ".adapter.0123abcd.partial").mkdir()
    finetune_here("train", "--resume", str(foreign))
    assert json.loads((foreign / "summary.json").read_text())["status"] == "finished"
    assert not list(foreign.glob(".*"))


def rights(path: Path) -> str:
    """Owner's, group's and others' rights in octal."""
    return f"{stat.S_IMODE(path.stat().st_mode):03o}"


@pytest.mark.parametrize(
    ("umask", "file", "folder", "served", "served_folder"),
    [
        (0o022, "600", "700", "644", "755"), (0o002, "660", "770", "664", "775"), (0o077, "600", "700", "600", "700"),
        (0o027, "600", "700", "640", "750"),
    ],
)  # fmt: skip
def test_a_run_is_its_owners_and_its_result_is_for_whom_the_umask_says(
    make_recipe: Callable[..., Recipe], umask: int, file: str, folder: str, served: str, served_folder: str
) -> None:
    """Lock, logs, samples, predictions, metrics and checkpoints are private; adapter/ follows the umask.

    A umask that lets the group write means that the group shares.
    """
    recipe = make_recipe(
        train={"max_steps": 1, "precision": "fp32"},
        evaluate={"metrics": ["exact_match"], "max_new_tokens": 2},
        tracking={"tracker": "none", "samples": {"prompts": ["a"], "max_new_tokens": 2}},
    )
    before = os.umask(umask)
    try:
        summary = run.start(recipe, name="run", command="finetune train").summary
    finally:
        os.umask(before)
    path = Path(recipe.output.folder) / summary["name"]
    files = (
        "recipe.lock.yaml",
        "summary.json",
        "metrics.jsonl",
        "samples.jsonl",
        "data.json",
        "plan.json",
        "run.log",
        "predictions/final.jsonl",
    )
    assert {name: rights(path / name) for name in files} == dict.fromkeys(files, file)
    folders = ("checkpoints", "predictions")
    assert {name: rights(path / name) for name in folders} == dict.fromkeys(folders, folder)
    assert {each.name: rights(each) for each in (path / "adapter").iterdir()} == dict.fromkeys(
        (each.name for each in (path / "adapter").iterdir()), served
    )
    assert [rights(each) for each in (path, path / "adapter")] == [served_folder] * 2

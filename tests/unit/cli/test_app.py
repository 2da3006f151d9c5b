"""The command line's own words: version and help everywhere, a folder that is gone, what a verb is asked
for."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from finetune.cli.app import VERBS, run

INTERRUPTED = """
import os, signal
import finetune.recipe.load as load
def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("Ctrl-C was held back")
load.load_recipe = interrupted
from finetune.cli.app import main
main()
"""


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `finetune WORDS`."""
    monkeypatch.setattr(sys, "argv", ["finetune", *words])
    capsys.readouterr()
    code = run()
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The version that is installed."""
    assert call(monkeypatch, capsys, "--version") == (
        0,
        f"finetune {metadata.version('llama-finetune')}\n",
        "",
    )


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS), ["runs", "list"], ["runs", "reproduce"]])
def test_h_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """-h says what --help says, for each verb and for the verbs of `runs`."""
    short, full = (call(monkeypatch, capsys, *words, option) for option in ("-h", "--help"))
    assert short == full
    assert short[0] == 0
    assert "Usage: finetune" in short[1]


def test_a_working_folder_that_was_deleted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One message and exit 2 for each verb; the version needs no folder."""
    folder, before = tmp_path / "gone", Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    try:
        folder.rmdir()
        for words in (
            ["check", "quickstart"],
            ["train", "../r.yaml"],
            ["runs", "list"],
            ["inspect", "quickstart"],
        ):
            code, out, err = call(monkeypatch, capsys, *words)
            assert (code, out) == (2, "")
            assert err == "error: the working folder was deleted: change to one that is there.\n"
        assert call(monkeypatch, capsys, "--version")[0] == 0
    finally:
        os.chdir(before)


def test_runs_of_a_folder_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A name that is none is refused, as JSON too; a folder without runs, and the default one that nobody
    made yet, are not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("")
    for name in ("nosuchdir", "a file"):
        code, _, err = call(monkeypatch, capsys, "runs", "list", name)
        assert (code, err) == (2, f"error: {name} is no folder: expected one that holds run folders.\n")
        code, out, _ = call(monkeypatch, capsys, "runs", "list", name, "--json")
        assert (code, "is no folder" in json.loads(out)["error"]) == (2, True)
    assert call(monkeypatch, capsys, "runs", "list", ".")[0] == 0
    assert call(monkeypatch, capsys, "runs", "list")[0] == 0


def test_one_process_of_a_launch_is_a_plain_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_base: Path,
    alpaca_file: Path,
) -> None:
    """With --processes 1 it is said that nothing is sharded, and what a plain run can't do is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD_PRELOAD", "")
    (tmp_path / "r.yaml").write_text(
        f"model: {{base: {tiny_base}}}\ndata: {{train: [{{path: {alpaca_file}, format: alpaca}}], "
        f"max_length_tokens: 128}}\n"
        "train: {max_steps: 1, precision: fp32}\ntracking: {tracker: none}\n"
    )
    code, out, _ = call(monkeypatch, capsys, "train", "r.yaml", "--launch", "fsdp2", "--processes", "1")
    assert code == 0
    assert "note: fsdp2 with one process is a plain run: there is nothing to shard" in out
    code, _, err = call(
        monkeypatch, capsys, "train", "r.yaml", "--launch", "zero2_offload", "--processes", "1"
    )
    assert code == 2
    assert "a plain run offloads nothing" in err


@pytest.mark.parametrize("name", ["finetune", "python -m finetune"])
def test_a_data_prep_of_the_working_folder_is_not_ours(tmp_path: Path, name: str) -> None:
    """Packages of the folder in which a command is typed, under the names of ours, don't run."""
    for package in ("data_prep", "recipes", "accelerate_configs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the working folder's')")
    own = [str(Path(sys.executable).with_name("finetune"))]
    words = own if name == "finetune" else [sys.executable, "-m", "finetune"]
    done = subprocess.run(
        [*words, "check", "quickstart"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_the_quickstart_at_once(tmp_path: Path) -> None:
    """Signals are not held back while it works on what comes before its training."""
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[1:] = ['quickstart', 'model.base=a/b']\n" + INTERRUPTED,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_long_line_of_an_error_is_cut_in_its_middle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value as long as a book is shown by its beginning and its end, and what is said of it stands there
    whole."""
    name = f"begin/{'x/' * 20_000}end"
    code, _, said = call(monkeypatch, capsys, "inspect", name)
    assert code == 2
    assert said.startswith("error: begin/x/x/")
    assert said.endswith("x/x/end: File name too long\n")
    assert " ... " in said
    assert len(said) < 2_000


@pytest.mark.parametrize(
    "words",
    [["TOKEN"], ["runs", "show", "run", "TOKEN"], ["train", "--TOKEN"], ["generate", "x", "--seed=TOKEN"]],
)
def test_a_secret_among_wrong_words_is_not_repeated(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What typer says of words that it doesn't know goes through the same scrubbing as all that is
    printed."""
    token = f"hf_{'Zx9' * 12}"
    code, printed, error = call(monkeypatch, capsys, *(word.replace("TOKEN", token) for word in words))
    assert (code, printed) == (2, "")
    assert "Usage: finetune" in error
    assert token not in error

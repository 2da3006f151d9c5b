"""Files in folders that others may have filled or may read."""

import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.disk import (
    append_own,
    follow_umask,
    make_private,
    open_own,
    open_regular,
    private_mode,
    read_json,
    read_regular,
    refuse_links,
    write_private,
)
from data_prep.temporary import remove_tree, sweep, temporary_folder


@pytest.fixture
def with_umask() -> Iterator[Callable[[int], object]]:
    """Sets the process's umask; afterwards it is what it was."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def odd_files(folder: Path) -> list[Path]:
    """What is no file, and would wait or go on for ever where it were read as one."""
    os.mkfifo(folder / "pipe")
    (folder / "link to a pipe").symlink_to("pipe")
    (folder / "endless").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket"))
    (folder / "folder").mkdir()
    return sorted(folder.iterdir())


def test_only_files_are_read(tmp_path: Path) -> None:
    """A pipe, a device, a socket and a folder are refused at once, by their name; a link to a file is
    read."""
    (tmp_path / "odd").mkdir()
    for path in odd_files(tmp_path / "odd"):
        for read in (open_regular, read_json, lambda path: read_regular(path, 10)):
            with pytest.raises(OSError, match=r"not a file; give a file|directory") as caught:
                read(path)
            assert caught.value.filename == str(path)
    (tmp_path / "file").write_text("[1]")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link") == [1]


def test_what_is_too_large_or_too_deep_is_refused(tmp_path: Path) -> None:
    """Before it is in memory, or takes the interpreter's stack."""
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="has more than 16,777,216 bytes"):
        read_json(path)
    path.write_text("[" * 10**6)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="decode"):
        read_json(path)


def test_links_of_either_kind_are_not_written_through(tmp_path: Path) -> None:
    """Neither where a file is added to nor where it is replaced; the other name keeps its content."""
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    (tmp_path / "symbolic").symlink_to(precious)
    (tmp_path / "hard").hardlink_to(precious)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("symbolic", "is a link to"),
        ("dangling", "is a link to"),
        ("hard", "hard link"),
        ("pipe", "FIFO"),
    ):
        for write in (append_own, lambda path: open_own(path, os.O_RDWR)):
            with pytest.raises(OSError, match=words) as caught:
                write(tmp_path / name)
            assert str(tmp_path / name) == caught.value.filename
        write_private(tmp_path / name, "mine")
        assert (tmp_path / name).read_text() == "mine"
        assert not (tmp_path / name).is_symlink()
    assert precious.read_text() == "as it was"
    assert not (tmp_path / "new").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Where writing fails the old one stays, and nothing is left beside it."""
    path = tmp_path / "a"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "new \ud800")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [
        (0o022, 0o600, 0o700), (0o077, 0o600, 0o700), (0o027, 0o600, 0o700), (0o002, 0o660, 0o770), (0o007, 0o660, 0o770),
        (0o000, 0o666, 0o777), (0o020, 0o606, 0o707),
    ],
)  # fmt: skip
def test_private_is_for_those_whom_the_umask_lets_write(
    umask: int, file: int, folder: int, with_umask: Callable[[int], object], tmp_path: Path
) -> None:
    """Files, folders and what is added to; and a result is for those whom it lets read."""
    with_umask(umask)
    write_private(tmp_path / "a", "")
    append_own(tmp_path / "b").close()
    make_private(tmp_path / "c")
    assert (mode(tmp_path / "a"), mode(tmp_path / "b"), mode(tmp_path / "c")) == (file, file, folder)
    assert (private_mode(0o666), private_mode(0o777)) == (file, folder)
    (tmp_path / "c" / "d").touch(0o600)
    follow_umask(tmp_path / "c")
    assert (mode(tmp_path / "c"), mode(tmp_path / "c" / "d")) == (0o777 & ~umask, 0o666 & ~umask)


def test_a_private_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    """With its rights; a link in its place is refused, and so is a file."""
    (tmp_path / "there").mkdir(0o755)
    make_private(tmp_path / "there")
    assert mode(tmp_path / "there") == 0o755
    (tmp_path / "link").symlink_to("there")
    with pytest.raises(OSError, match="is a link to there"):
        make_private(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_private(tmp_path / "file")


def test_links_are_found_at_any_depth(tmp_path: Path) -> None:
    """Whatever they point to; what lies in the folder that is left out isn't looked at, and no link is gone
    through."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest").symlink_to("nowhere")
    refuse_links(tmp_path, but="wandb")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    with pytest.raises(OSError, match=r"is a link to \.\."):
        refuse_links(tmp_path, but="wandb")
    (tmp_path / "a" / "b" / "up").unlink()
    os.mkfifo(tmp_path / "a" / "pipe")
    with pytest.raises(OSError, match="is a pipe"):
        refuse_links(tmp_path, but="wandb")


# --- Temporary folders


def test_a_temporary_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    """However deep, without rights, and whatever its names; its own name may have been given to something
    else."""
    kept = tmp_path / "kept"
    with temporary_folder("t-", within=tmp_path) as folder:
        assert mode(folder) == 0o700
        (folder / "-rf\n").mkdir(0)
        deep = folder
        here = os.open(folder, os.O_RDONLY)
        for _ in range(60):  # beyond the longest path
            os.mkdir("a" * 200, dir_fd=here)
            below = os.open("a" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        (deep / "link").symlink_to("/")
    assert list(tmp_path.iterdir()) == []
    with temporary_folder("t-", within=tmp_path) as folder:
        folder.rename(kept)
        folder.mkdir()
    assert sorted(tmp_path.iterdir()) == sorted([folder, kept])


LEAVE = """
import os, sys
from pathlib import Path
from data_prep.temporary import temporary_folder
with temporary_folder("t-", within=Path(sys.argv[1])) as folder:
    (folder / "a").write_text("x")
    print(folder, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    """With the next folder of the same name's beginning; files, links and other names are nobody's
    leftovers."""
    command = [sys.executable, "-c", LEAVE, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([*command, "running"], **options) as running:  # type: ignore[call-overload]
        used = Path(running.stdout.readline().strip())
        killed = subprocess.run([*command, "killed"], **options, check=False)  # type: ignore[call-overload]
        left = Path(killed.stdout.strip())
        (tmp_path / "t-file").touch()
        (tmp_path / "t-link").symlink_to(used)
        (tmp_path / "u-other").mkdir()
        assert left.is_dir()
        with temporary_folder("t-", within=tmp_path) as folder:
            assert {path.name for path in tmp_path.iterdir()} == {
                used.name,
                "t-file",
                "t-link",
                "u-other",
                folder.name,
            }
            assert (used / "a").read_text() == "x"
        running.communicate("")
    assert not used.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
def test_another_users_folders_stay(tmp_path: Path) -> None:
    """Though nobody uses them."""
    (tmp_path / "t-theirs").mkdir()
    os.chown(tmp_path / "t-theirs", 65534, 65534)
    sweep(tmp_path, ("t-",))
    assert (tmp_path / "t-theirs").is_dir()


def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    """A link to a folder goes, and what is in that folder stays."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text(json.dumps("kept"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "a").exists()


def test_without_locks_folders_are_made_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that refuses them (NFS, for a folder), nothing says that a folder isn't in use."""

    def no_locks(*_: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "t-left").mkdir()
    with temporary_folder("t-", within=tmp_path) as folder:
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["t-left"]

"""Which files a path in the recipe means: one file, a glob or a folder. Light to import, because the recipe
uses it too."""

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Literal

from data_prep.disk import open_regular

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""The endings of files that can be read."""

OTHER_NAMES = {".ndjson": ".jsonl"}
"""Endings that mean one of KINDS."""

COMPRESSIONS = (".gz", ".zst")
"""The endings that may follow one of KINDS: gzip and Zstandard."""

EXPECTED = f"{', '.join(KINDS)}, each also followed by {' or '.join(COMPRESSIONS)}"

SAVED = "state.json"
"""A file in folders that datasets' save_to_disk wrote, next to the Arrow files."""

SAVED_SPLITS = "dataset_dict.json"
"""A file in a folder of such folders, one per split."""

ABOUT_DATA = frozenset({SAVED, SAVED_SPLITS, "dataset_info.json", "dataset_infos.json"})
"""Files that describe the data next to them, and are not data."""

HELD_OUT = re.compile(
    r"(?<![a-z])(tests?|testing|valid|validation|val|evals?|evaluation|dev|hold[-_ ]?out|held[-_ ]?out)"
    r"(set|split)?(?![a-z])"
)
"""A word in a file's name, in lower case, that says that it is not for training."""

GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a pointer begins: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""

MOST_SEARCHED = 10_000
"""How many entries below a folder are searched for a hint."""

Use = Literal["train", "evaluation"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file that is read."""

    path: Path

    name: str
    """Its name in messages: "rows.jsonl"; in a folder or a glob "folder/rows.jsonl", from the part that is
    not a pattern."""

    held_out: bool = False
    """Its name, or that of a folder above it, says that it is not for training, and the recipe doesn't name
    it explicitly."""


def kind_of(name: str) -> str | None:
    """The kind of a file, one of KINDS, by its name without a compression's ending; None if it can't be
    read."""
    path = PurePath(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    kind = OTHER_NAMES.get(suffix, suffix)
    return kind if kind in KINDS else None


def problem_with(path: str | Path, use: Use | None = None) -> str | None:
    """Why a path can't be read as data for this use, as a message; None if there are files to read.

    Looks at names only: a file's content is judged when it is read.
    """
    try:
        problem = _problem_with(Path(path), use)
    except OSError as error:
        problem = f"{path} can't be read: {error.strerror or error}"
    except ValueError:  # a null byte in the name
        problem = f"no such file: looked at {path}"
    return None if problem is None else printable(problem)


def find_files(path: str | Path, use: Use | None = None) -> list[DataFile]:
    """The files that a path means, sorted by name: the file itself, a folder's readable files, or what a glob
    matches.

    With `use` "train", those whose names don't say that they are held out; with "evaluation", those that say
    so, if there are any; with None, all of them. Subfolders are not searched (a glob with ** does that),
    except those that datasets' save_to_disk wrote; names that begin with a dot are skipped.
    """
    files = _all_files(Path(path))
    if use == "train":
        return [file for file in files if not file.held_out]
    return [file for file in files if file.held_out] or files if use == "evaluation" else files


def left_out_files(path: str | Path, use: Use | None) -> list[str]:
    """The names of readable files that are not for this use, by their names."""
    taken = find_files(path, use)
    return [printable(file.name) for file in find_files(path) if file not in taken]


def says_held_out(name: str) -> bool:
    """Whether a name contains a complete word that marks data not for training: test-0001.jsonl,
    mySet.dev.csv."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return HELD_OUT.search(apart.lower()) is not None


def _all_files(path: Path) -> list[DataFile]:
    if path.is_file():
        return [DataFile(path, path.name)]
    if path.is_dir():
        splits = (
            sorted(folder for folder in path.iterdir() if (folder / SAVED).is_file())
            if _is_splits(path)
            else []
        )
        found = [file.relative_to(path) for folder in (path, *splits) for file in sorted(folder.iterdir())]
        return _data_files(
            path, (file for file in found if kind_of(file.name) and not file.name.startswith("."))
        )
    base, pattern = _split_pattern(path)
    matches = sorted(PurePath(match) for match in glob.glob(pattern, root_dir=base, recursive=True))
    return _data_files(
        base, (match for match in matches if not _is_marker(match.name)), named=says_held_out(pattern)
    )


def _data_files(base: Path, below: Iterable[PurePath], *, named: bool = False) -> list[DataFile]:
    """Those of some paths below a folder that are files of data; `named`: the recipe itself asks for held-out
    ones."""
    return [
        DataFile(
            base / path, f"{base.name}/{path.as_posix()}", not named and any(map(says_held_out, path.parts))
        )
        for path in below
        if (base / path).is_file() and path.name not in ABOUT_DATA and not _is_cache_of_datasets(base / path)
    ]


def _is_splits(folder: Path) -> bool:
    return (folder / SAVED_SPLITS).is_file()


def _is_marker(name: str) -> bool:
    """Whether a file is not data but a marker that a program such as Spark leaves next to data: _SUCCESS, a
    checksum."""
    return name.endswith(".crc") or (name.startswith("_") and kind_of(name) is None)


def _is_cache_of_datasets(path: Path) -> bool:
    """Whether a file is a cache that `datasets` made while working with saved data."""
    return path.name.startswith("cache-") and path.suffix == ".arrow" and (path.parent / SAVED).is_file()


def unread_files(path: str | Path) -> list[str]:
    """The names in a folder that can't be read as data: files of other types, and folders (with a / at the
    end)."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    read = {(folder / file.path.relative_to(folder).parts[0]) for file in _all_files(folder)}
    left_out = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry not in read]
    return sorted(printable(f"{entry.name}{_mark(entry)}") for entry in left_out)


def _mark(entry: Path) -> str:
    """What is added to a name that find_files leaves out, where its ending doesn't say why."""
    if entry.is_dir():
        return "/"
    return " (a broken link)" if entry.is_symlink() and not entry.exists() else ""


def printable(text: str) -> str:
    """A text with what is not Unicode (bytes of a file's name that are not UTF-8) as backslash escapes."""
    return text.encode(errors="backslashreplace").decode()


def is_git_lfs_pointer(path: str | Path) -> bool:
    """Whether a file is the pointer that git checks out in place of a file whose content Git LFS didn't
    fetch."""
    with open_regular(Path(path)) as file:
        return file.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER


def is_pattern(path: str | Path) -> bool:
    """Whether a path is a glob rather than one file's or folder's name."""
    return glob.has_magic(str(path)) and not Path(path).exists()


def _problem_with(path: Path, use: Use | None) -> str | None:
    is_folder = path.is_dir()
    if not is_folder and not path.is_file():
        if path.exists():
            return f"neither a file nor a folder: {path}"
        if not is_pattern(path):
            return f"no such file: looked at {path}"
    found = find_files(path)
    for file in found:
        if kind_of(file.name) is None:
            return _wrong_ending(file.name) + (
                f"; the glob {path} matches it: narrow it" if is_pattern(path) else ""
            )
        if printable(str(file.path)) != str(file.path):
            return f"{file.path} has a name that is not UTF-8; rename it"
    if not found:
        return _nothing_in_folder(path) if is_folder else f"no file matches the glob {path}"
    if not find_files(path, use):
        return (
            f"the name of every file of {path} says that it is held out "
            f"({_first(file.name for file in found)}); to train on one anyway, give its own path"
        )
    return None


def _split_pattern(path: Path) -> tuple[Path, str]:
    """Split a glob into the folder that it starts from, which may have brackets in its name, and the pattern
    below it."""
    depth = len(path.parts) - 1
    while depth > 1 and not Path(*path.parts[:depth]).is_dir():
        depth -= 1
    return Path(*path.parts[:depth]), str(PurePath(*path.parts[depth:]))


def _wrong_ending(name: str) -> str:
    suffix = PurePath(name).suffix
    return (
        f"{name} ends in {suffix!r}, expected {EXPECTED}"
        if suffix
        else f"{name} has no ending, expected {EXPECTED}"
    )


def _nothing_in_folder(path: Path) -> str:
    others = unread_files(path)
    holds = f"holds {_first(others)}" if others else "is empty"
    return f"no file in the folder {path} can be read: it {holds}; {_line_for(path)}"


def _line_for(path: Path) -> str:
    """What to write for a folder without data files: the folders below it that have some, if there are
    any."""
    found = [file for file in islice(path.rglob("*"), MOST_SEARCHED) if kind_of(file.name) and file.is_file()]
    hidden = [file for file in found if any(part.startswith(".") for part in file.relative_to(path).parts)]
    below = [file for file in found if file.name not in ABOUT_DATA and file not in hidden]
    folders = sorted({file.parent for file in below}, key=lambda folder: (says_held_out(folder.name), folder))
    if not folders:
        return f"expected files that end in {EXPECTED}"
    if len(folders) == 1:
        return f"its data are in a subfolder: write path: {folders[0]}"
    ending = "".join(below[0].suffixes[-2:] if below[0].suffix in COMPRESSIONS else below[0].suffixes[-1:])
    return (
        f"its data are in {_first(map(str, folders))}: write path: {folders[0]}, or for all of them "
        f"{path}/**/*{ending}"
    )


def _first(names: Iterable[str], most: int = 5) -> str:
    """The first few names, for messages."""
    known = list(names)
    return f"{', '.join(known[:most])}{', ...' if len(known) > most else ''}"

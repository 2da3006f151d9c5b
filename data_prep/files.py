"""Which files a path of the recipe stands for: one file, a glob or a folder. Light to import: the recipe asks here too."""

import glob
from dataclasses import dataclass
from pathlib import Path, PurePath

from data_prep.disk import open_regular

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""The endings of files that can be read."""

COMPRESSIONS = (".gz", ".zst")
"""The endings that may follow one of KINDS: gzip and Zstandard."""

EXPECTED = f"{', '.join(KINDS)}, each also followed by {' or '.join(COMPRESSIONS)}"
SAVED_BY_DATASETS = ("state.json", "dataset_info.json")
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a pointer begins: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file that is read."""

    path: Path

    name: str
    """What messages call it: "rows.jsonl"; in a folder or a glob "folder/rows.jsonl", from the part that is no pattern."""


def kind_of(name: str) -> str | None:
    """The kind of a file, one of KINDS, by its name without a compression's ending; None where it can't be read."""
    path = PurePath(name.lower())
    kind = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    return kind if kind in KINDS else None


def problem_with(path: str | Path) -> str | None:
    """What keeps a path from being read as data, as a text for the user; None where there are files to read.

    Looks at names only: a file's content is judged when it is read.
    """
    try:
        problem = _problem_with(Path(path))
    except OSError as error:
        problem = f"{path} can't be read: {error.strerror or error}"
    except ValueError:  # a null byte in the name
        problem = f"no such file: looked at {path}"
    return None if problem is None else printable(problem)


def find_files(path: str | Path) -> list[DataFile]:
    """The files that a path stands for, sorted by name: the file itself, a folder's readable files, or what a glob matches.

    A folder's own folders are not searched (a glob with ** does that), and names that begin with a dot are passed over.
    """
    path = Path(path)
    if path.is_file():
        return [DataFile(path, path.name)]
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and kind_of(file.name) and not file.name.startswith(".")]
        return [DataFile(file, f"{path.name}/{file.name}") for file in sorted(files)]
    base, pattern = _split_pattern(path)
    matches = sorted(PurePath(match) for match in glob.glob(pattern, root_dir=base, recursive=True))
    return [DataFile(base / match, f"{base.name}/{match.as_posix()}") for match in matches if (base / match).is_file()]


def unread_files(path: str | Path) -> list[str]:
    """The names in a folder that find_files leaves out: files of other kinds, and folders (with a / at the end)."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    left_out = [
        name for name in folder.iterdir() if not name.name.startswith(".") and not (name.is_file() and kind_of(name.name))
    ]
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
    """Whether a file is the pointer that git checks out in place of a file whose content Git LFS didn't fetch."""
    with open_regular(Path(path)) as file:
        return file.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER


def is_pattern(path: str | Path) -> bool:
    """Whether a path is a glob rather than one file's or folder's name."""
    return glob.has_magic(str(path)) and not Path(path).exists()


def _problem_with(path: Path) -> str | None:
    is_folder = path.is_dir()
    if not is_folder and not path.is_file():
        if path.exists():
            return f"neither a file nor a folder: {path}"
        if not is_pattern(path):
            return f"no such file: looked at {path}"
    if is_folder and all((path / name).is_file() for name in SAVED_BY_DATASETS):
        return f"{path} was saved by datasets' save_to_disk; give its Arrow files: {path / '*.arrow'}"
    found = find_files(path)
    for file in found:
        if kind_of(file.name) is None:
            return _wrong_ending(file.name) + (f"; the glob {path} matches it: narrow it" if is_pattern(path) else "")
        if printable(str(file.path)) != str(file.path):
            return f"{file.path} has a name that is not UTF-8; rename it"
    if not found:
        return _nothing_in_folder(path) if is_folder else f"no file matches the glob {path}"
    return None


def _split_pattern(path: Path) -> tuple[Path, str]:
    """A glob as the folder that it starts from, which may have brackets in its name, and the pattern below it."""
    depth = len(path.parts) - 1
    while depth > 1 and not Path(*path.parts[:depth]).is_dir():
        depth -= 1
    return Path(*path.parts[:depth]), str(PurePath(*path.parts[depth:]))


def _wrong_ending(name: str) -> str:
    suffix = PurePath(name).suffix
    return f"{name} ends in {suffix!r}, expected {EXPECTED}" if suffix else f"{name} has no ending, expected {EXPECTED}"


def _nothing_in_folder(path: Path) -> str:
    others = unread_files(path)
    holds = f"holds {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}" if others else "is empty"
    return f"no file in the folder {path} can be read: it {holds}; expected files that end in {EXPECTED}"

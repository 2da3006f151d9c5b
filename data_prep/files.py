"""Which files a path of the recipe stands for: one file, a glob or a folder. Light to import: the recipe asks here too."""

import glob
from dataclasses import dataclass
from pathlib import Path, PurePath

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""The endings of files that can be read."""

COMPRESSIONS = (".gz", ".zst")
"""The endings that may follow one of KINDS: gzip and Zstandard."""

EXPECTED = f"{', '.join(KINDS)}, each also followed by {' or '.join(COMPRESSIONS)}"
SAVED_BY_DATASETS = ("state.json", "dataset_info.json")


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
    path = Path(path)
    try:
        if path.is_file():
            return None if kind_of(path.name) else _wrong_ending(path.name)
        if path.is_dir():
            return _problem_with_folder(path)
        if path.exists():
            return f"neither a file nor a folder: {path}"
        if not is_pattern(path):
            return f"no such file: looked at {path}"
        found = find_files(path)
    except OSError as error:
        return f"{path} can't be read: {error.strerror or error}"
    except ValueError:  # a null byte in the name
        return f"no such file: looked at {path}"
    wrong = [file.name for file in found if kind_of(file.name) is None]
    if wrong:
        return f"{_wrong_ending(wrong[0])}; the glob {path} matches it: narrow it"
    return None if found else f"no file matches the glob {path}"


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
    return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in left_out)


def is_pattern(path: str | Path) -> bool:
    """Whether a path is a glob rather than one file's or folder's name."""
    return glob.has_magic(str(path)) and not Path(path).exists()


def _split_pattern(path: Path) -> tuple[Path, str]:
    """A glob as the folder that it starts from, which may have brackets in its name, and the pattern below it."""
    depth = len(path.parts) - 1
    while depth > 1 and not Path(*path.parts[:depth]).is_dir():
        depth -= 1
    return Path(*path.parts[:depth]), str(PurePath(*path.parts[depth:]))


def _wrong_ending(name: str) -> str:
    suffix = PurePath(name).suffix
    return f"{name} ends in {suffix!r}, expected {EXPECTED}" if suffix else f"{name} has no ending, expected {EXPECTED}"


def _problem_with_folder(path: Path) -> str | None:
    if all((path / name).is_file() for name in SAVED_BY_DATASETS):
        return f"{path} was saved by datasets' save_to_disk; give its Arrow files: {path / '*.arrow'}"
    if find_files(path):
        return None
    others = unread_files(path)
    holds = f"holds {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}" if others else "is empty"
    return f"no file in the folder {path} can be read: it {holds}; expected files that end in {EXPECTED}"

"""The folder that a merge writes: beside its final name until it is whole, and what stands in it beside the
weights."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.disk import follow_umask, is_still, link_error
from finetune.errors import MergeError
from finetune.runs.folder import sync_files

VERIFICATION_FILE = "verification.json"
NO_ROOM = re.compile(rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\)")
"""How libraries in Rust (safetensors, tokenizers) say that the disk is full, in errors of their own."""
SPARE_DISK_BYTES = 100_000_000
"""Room beyond the weights: tokenizer, index, card."""


def failed_name(output: Path) -> Path:
    """Where an output goes that did not hold."""
    return output.with_name(f"{output.name}.failed")


def partial_name(output: Path) -> Path:
    """Where an output lies until it is whole."""
    return output.with_name(f".{output.name}.unfinished")


def refuse_existing(output: Path) -> None:
    """Raises MergeError where something stands under a name that the merge would write, or where no folder
    can be."""
    for path in (output, failed_name(output)) if output.name else (output,):  # / has no name
        if path.exists() or path.is_symlink():
            raise MergeError(
                f"{path} exists already, and nothing is ever written over: remove it, or name another output."
            )
    parent = next(parent for parent in output.parents if parent.exists())
    if not parent.is_dir():
        raise MergeError(f"{parent} is a file, so nothing can be written to {output}: name another output.")


def refuse_small_disk(output: Path, size: int, what: str = "the merged model") -> None:
    """Raises MergeError where the output's disk lacks room for weights of so many bytes."""
    needed, free = size + SPARE_DISK_BYTES, shutil.disk_usage(output.parent).free
    if free < needed:
        raise MergeError(
            f"{output.parent} has {free / 1e9:,.1f} GB free, and {what} needs about "
            f"{needed / 1e9:,.1f} GB: make room, or name an output on another disk."
        )


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` at the end; after an error nothing is left.

    What a merge left that was killed is removed. Raises MergeError where another process writes the same
    output now, OSError where somebody put a link there, and where the disk is full, whatever finds it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(output)
    handle = _claim(partial, output)
    try:
        try:
            for leftover in partial.iterdir():
                shutil.rmtree(
                    leftover
                ) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
            yield partial
            follow_umask(partial)
            sync_files(partial)
            partial.rename(output)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if (full := NO_ROOM.search(str(error))) is not None and not isinstance(error, OSError):
                raise OSError(int(full[1]), os.strerror(int(full[1])), str(output)) from error
            raise
    finally:
        os.close(handle)


def _claim(partial: Path, output: Path) -> int:
    """A descriptor that holds the lock of the folder that has this name now: one that was just deleted keeps
    nobody out."""
    while True:
        if partial.is_symlink():  # what is in the folder that it names would be deleted
            raise link_error(partial)
        partial.mkdir(exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_still(partial, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise MergeError(
                f"another process is writing {output} now; wait for it, or name another output."
            ) from None
        os.close(handle)


def write_card(folder: Path, facts: dict[str, str], verdicts: list[str], *, reading: str = "") -> None:
    """README.md: what was merged (`facts`, name -> value in order), how it reads a text, and what the
    verification found."""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merged, lora]",
        "---",
        "",
        f"# {folder_title(facts)}",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "## How it reads a text", "", reading] if reading else []
    lines += ["", "## Verification", "", *(f"- {verdict}" for verdict in verdicts)]
    lines += [
        "",
        f"All figures, and the hash of each tensor, are in {VERIFICATION_FILE}; `finetune verify` checks "
        "them again.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def folder_title(facts: dict[str, str]) -> str:
    """The card's heading."""
    return f"{Path(facts['base']).name} with {Path(facts['adapter'].split(', ')[0]).name}, merged"

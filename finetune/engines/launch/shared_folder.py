"""Whether the machines of a launch share the run folder: each writes a mark into it, and looks for another's,
before any process starts."""

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed import Store

from data_prep.disk import PARTIAL, write_private
from finetune.errors import LaunchError

FOLDER, SEEN, VERDICT, HEARD = "folder", "seen", "verdict", "heard"
SHARED = "shared"
SECONDS = 15.0
"""How long a mark may take to be seen: file servers let their clients remember for a while what was not
there."""

Until = Callable[[Callable[[], Any], str], Any]
"""Waits for something, or raises LaunchError after so long with what it waited for."""


def check_shared(store: Store, folder: Path | None, rank: int, machines: int, until: Until) -> None:
    """Called by each machine once all have met; `folder` is machine 0's, and nobody else's is asked.

    Raises LaunchError on all of them where one doesn't see, or can't write, what another does.
    """

    def heard(key: str) -> str:
        until(lambda: store.check([key]), f"another machine ended before it had said {key!r}")
        return str(store.get(key).decode())

    if rank == 0:
        assert folder is not None  # noqa: S101 - the first machine makes it
        _write(_mark(folder, 0, token := secrets.token_hex(8)))
        store.set(FOLDER, f"{token} {socket.gethostname()} {folder}")
        problems = [_problem(heard(f"{SEEN}{other}"), folder, other, token) for other in range(1, machines)]
        verdict = "\n".join(filter(None, problems)) or SHARED
        store.set(VERDICT, verdict)
        _remove(folder, token, machines)
    else:
        token, first, place = heard(FOLDER).split(" ", 2)
        store.set(f"{SEEN}{rank}", _seen_from_here(Path(place), rank, token, first))
        verdict = heard(VERDICT)
        _remove(Path(place), token, machines)
    store.add(HEARD, 1)  # the store is machine 0's, and ends with it
    with suppress(LaunchError):
        until(lambda: store.add(HEARD, 0) >= machines, "not all machines heard of it")
    if verdict != SHARED:
        raise LaunchError(verdict)


def _seen_from_here(folder: Path, rank: int, token: str, first: str) -> str:
    """What is wrong with the folder on this machine; this machine's name where nothing is."""
    here = f"machine {rank} ({socket.gethostname()})"
    if not _appears(_mark(folder, 0, token)):
        return (
            f"! {here} doesn't see the run folder of machine 0 ({first}), {folder}: machines have to share "
            "it. Set output.folder, or --run-folder, to a folder of a file system that all of them mount."
        )
    try:
        _write(_mark(folder, rank, token))
    except OSError as error:
        return f"! {here} can't write to the run folder, {folder}: {error.strerror or error}."
    return here


def _problem(said: str, folder: Path, rank: int, token: str) -> str:
    """What is wrong with a machine; nothing where machine 0 sees what it wrote."""
    if said.startswith("! "):
        return said.removeprefix("! ")
    if _appears(_mark(folder, rank, token)):
        return ""
    return f"what {said} writes to {folder} doesn't come to machine 0: machines have to share the run folder."


def _mark(folder: Path, rank: int, token: str) -> Path:
    return folder / f".machine-{rank}-{token}{PARTIAL}"


def _write(mark: Path) -> None:
    write_private(mark, "")


def _appears(mark: Path) -> bool:
    deadline = time.monotonic() + SECONDS
    while not mark.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _remove(folder: Path, token: str, machines: int) -> None:
    for rank in range(machines):
        with suppress(OSError):
            _mark(folder, rank, token).unlink()

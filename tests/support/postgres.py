"""A PostgreSQL server of its own, as Debian packages it, that listens on a socket in a folder alone."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
FOUND = shutil.which("initdb", path=os.pathsep.join([*map(str, FOLDERS), os.environ.get("PATH", "")]))
needs_postgres = pytest.mark.skipif(FOUND is None, reason="PostgreSQL is not installed (initdb)")
USER = "postgres"
"""Who runs it where the tests run as root, which it refuses."""


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database, while this lasts. Its folder is no fixture's: pytest closes those to other
    users."""
    before = ("runuser", "-u", USER, "--") if os.geteuid() == 0 else ()

    def run(program: str, *arguments: str) -> None:
        command = [*before, str(Path(FOUND or "").with_name(program)), *arguments]
        # Its output goes nowhere: the server would keep a pipe open.
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory(prefix="finetune-postgres-") as folder:
        data = Path(folder) / "data"
        if before:
            shutil.chown(folder, USER)
        run("initdb", "--pgdata", str(data), "--username", USER, "--auth", "trust", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run(
            "pg_ctl", "--pgdata", str(data), "--log", f"{folder}/log", "--wait", "--options", options, "start"
        )
        try:
            yield f"postgresql+psycopg://{USER}@/postgres?host={folder}"
        finally:
            run("pg_ctl", "--pgdata", str(data), "--mode", "fast", "--wait", "stop")

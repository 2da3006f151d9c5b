"""Prepared data on disk: several processes at once, and processes that are killed."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.preparation import TRAIN, PreparedData, prepare
from data_prep.table.cache import clear, entries
from tests.unit.data_prep.rows import alpaca, same, section, whole_entries, write

ROOT = Path(__file__).resolve().parents[3]

PREPARE = """
import json, logging, sys
from pathlib import Path
from data_prep.config import DataSection
from data_prep.preparation import prepare
from data_prep.tokenizers.tokenizer import load_tokenizer

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
base, cache, section, allowed = sys.argv[1:]
data = prepare(
    DataSection.model_validate_json(section), load_tokenizer(base), seed=0, cache=Path(cache), allow_code=[allowed],
)
print(json.dumps({"from_cache": data.from_cache, "tokens": [document.token_ids for document in data.train]}), flush=True)
"""
SLOW = """
import time
from pathlib import Path

HERE = Path(__file__).parent
with (HERE / "preparations").open("a") as file:
    file.write("x")

def parse(row):
    if row["text"] == "wait":
        (HERE / "waiting").touch()
        end = time.monotonic() + 60
        while not (HERE / "go").exists() and time.monotonic() < end:
            time.sleep(0.01)
    return {"text": row["text"]}
"""


@dataclass
class Slow:
    """A data set that is prepared up to its third row, and on when a file "go" is there; it counts its
    preparations."""

    folder: Path
    base: Path
    cache: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def section(self) -> DataSection:
        return section(
            {
                "path": str(self.folder / "rows.jsonl"),
                "format": "python",
                "code": str(self.folder / "slow.py"),
            }
        )

    @property
    def allowed(self) -> str:
        return sha256((self.folder / "slow.py").read_bytes()).hexdigest()

    def start(self) -> subprocess.Popen[bytes]:
        """Start a process that prepares."""
        arguments = [str(self.base), str(self.cache), self.section.model_dump_json(), self.allowed]
        with self.output(len(self.started)).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", PREPARE, *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def output(self, number: int) -> Path:
        return self.folder / f"output{number}"

    def lines(self, number: int) -> list[str]:
        """What a process has printed."""
        return self.output(number).read_text().splitlines()

    def result(self, number: int) -> dict[str, Any]:
        """What a process prepared, once it has ended well."""
        assert self.started[number].wait(60) == 0, self.lines(number)
        result: dict[str, Any] = json.loads(self.lines(number)[-1])
        return result

    def until(self, done: Callable[[], object]) -> None:
        """Wait for something that processes do."""
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, [self.lines(number) for number in range(len(self.started))]
            time.sleep(0.01)

    def until_waiting(self) -> None:
        """Wait until a process stands in the middle of preparing."""
        self.until((self.folder / "waiting").exists)

    def go(self) -> None:
        (self.folder / "go").touch()

    @property
    def preparations(self) -> int:
        return len((self.folder / "preparations").read_text())

    def prepare(self, tokenizer: PreTrainedTokenizerFast, cache: Path | None) -> PreparedData:
        """Prepare in this process."""
        return prepare(self.section, tokenizer, seed=0, cache=cache, allow_code=[self.allowed])


@pytest.fixture
def slow(tmp_path: Path, base: Path) -> Iterator[Slow]:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "slow.py").write_text(SLOW)
    write(folder / "rows.jsonl", [{"text": text} for text in ("one", "two", "wait", "four")])
    made = Slow(folder, base, tmp_path / "cache")
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def test_two_processes_prepare_once(slow: Slow) -> None:
    """Of two processes that start at once one prepares; the other says that it waits, and for how long, and
    reads the same."""
    slow.start()
    slow.start()
    slow.until(
        lambda: [
            line for number in (0, 1) for line in slow.lines(number) if line.startswith("another process")
        ]
    )
    slow.go()
    results = [slow.result(number) for number in (0, 1)]
    assert slow.preparations == 1
    assert sorted(result["from_cache"] for result in results) == [False, True]
    assert results[0]["tokens"] == results[1]["tokens"]
    assert len(results[0]["tokens"]) == 4
    maker, reader = (
        slow.lines(number)[:-1] for number in sorted((0, 1), key=lambda number: results[number]["from_cache"])
    )
    assert maker == []
    assert reader[0] == "another process is preparing these data; waiting for it"
    assert reader[1].startswith("waited ")


def test_a_killed_process_leaves_nothing_that_is_read(slow: Slow, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a process leaves that is killed in the middle counts for nothing; the next one prepares and takes
    it away."""
    slow.start()
    slow.until_waiting()
    slow.started[0].send_signal(signal.SIGKILL)
    assert slow.started[0].wait(60) == -signal.SIGKILL
    (leftover,) = (path for path in slow.cache.iterdir() if path.is_dir())
    assert leftover.name.endswith(".unfinished")
    assert (leftover / TRAIN).is_file()
    assert entries(slow.cache) == []
    slow.go()
    data = slow.prepare(tokenizer, slow.cache)
    assert not data.from_cache
    assert same(data, slow.prepare(tokenizer, None))
    assert [path for path in slow.cache.iterdir() if path.is_dir()] == whole_entries(slow.cache)
    assert slow.prepare(tokenizer, slow.cache).from_cache


def test_one_that_waits_goes_on_for_one_that_is_killed(slow: Slow) -> None:
    """Where the process that prepares is killed, the one that waits for it prepares in its place."""
    slow.start()
    slow.until_waiting()
    slow.start()
    slow.until(lambda: [line for line in slow.lines(1) if line.startswith("another process")])
    slow.started[0].kill()
    slow.go()
    assert slow.result(1)["from_cache"] is False
    assert slow.preparations == 2
    assert [path for path in slow.cache.iterdir() if path.is_dir()] == whole_entries(slow.cache)


def test_a_process_killed_before_the_last_step(
    rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """An entry that was written and not yet given its name is none, and the next preparation takes it
    away."""
    data, cached = section(alpaca(rows / "rows.jsonl")), tmp_path / "cache"
    prepare(data, tokenizer, seed=0, cache=cached)
    (entry,) = whole_entries(cached)
    unfinished = entry.rename(
        cached / f"{entry.name}.0123abcd.unfinished"
    )  # as a process leaves it that is killed there
    listed = entries(cached)
    assert not prepare(data, tokenizer, seed=0, cache=cached).from_cache
    assert not unfinished.exists()
    assert listed == []


def test_an_interrupted_preparation_leaves_nothing(slow: Slow) -> None:
    """A process that is interrupted (Ctrl-C) in the middle takes its unfinished folder away."""
    slow.start()
    slow.until_waiting()
    slow.started[0].send_signal(signal.SIGINT)
    assert slow.started[0].wait(60) != 0
    assert not [path for path in slow.cache.iterdir() if path.is_dir()]


def test_clear_leaves_alone_what_is_being_prepared(
    slow: Slow, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Clearing deletes the other entries, and not what another process prepares at the moment, which ends as
    ever."""
    prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=slow.cache)
    (other,) = entries(slow.cache)
    slow.start()
    slow.until_waiting()
    assert clear(slow.cache) == (1, other.bytes)
    assert len([path for path in slow.cache.iterdir() if path.is_dir()]) == 1
    slow.go()
    assert slow.result(0)["from_cache"] is False
    assert slow.prepare(tokenizer, slow.cache).from_cache
    assert slow.preparations == 1


def test_what_killed_processes_left_of_other_data_goes(
    slow: Slow, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With the next preparation, whatever it prepares; what another process is at work on stays."""
    slow.start()
    slow.until_waiting()
    (used,) = slow.cache.glob("*.unfinished")
    left = slow.cache / f"{'0' * 32}.0123abcd.unfinished"
    (left / "folder").mkdir(parents=True)
    strange = slow.cache / "mine.unfinished"
    strange.mkdir()
    prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=slow.cache)
    assert [path.exists() for path in (used, left, strange)] == [True, False, True]
    slow.go()
    assert slow.result(0)["from_cache"] is False


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_prepared_data_are_private(
    umask: int, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nobody else comes to an entry's files, unless the umask lets the group write, and so share."""
    cached = tmp_path / "new" / "cache"
    before = os.umask(umask)
    try:
        prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=cached)
    finally:
        os.umask(before)
    folders = [stat.S_IMODE(path.stat().st_mode) for path in (cached, *whole_entries(cached))]
    assert folders == [{0o022: 0o700, 0o002: 0o770}[umask]] * 2
    (lock,) = cached.glob("*.lock")
    assert stat.S_IMODE(lock.stat().st_mode) == {0o022: 0o600, 0o002: 0o660}[umask]


@pytest.mark.parametrize("name", ["entry", "lock"])
def test_a_cache_is_not_written_through_links(
    name: str, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """One in the place of an entry or of its lock is refused with its name, and clearing goes past it."""
    data, cached, kept = section(alpaca(rows / "rows.jsonl")), tmp_path / "cache", tmp_path / "kept"
    prepare(data, tokenizer, seed=0, cache=cached)
    (entry,) = whole_entries(cached)
    shutil.rmtree(entry)
    kept.mkdir()
    (kept / "precious").write_text("as it was")
    link = entry if name == "entry" else cached / f"{entry.name}.lock"
    link.unlink(missing_ok=True)
    link.symlink_to(kept if name == "entry" else kept / "precious")
    with pytest.raises(DataError, match=f"{link} is a link to {kept}"):
        prepare(data, tokenizer, seed=0, cache=cached)
    if name == "entry":
        assert clear(cached) == (0, 0)
    assert entries(cached) == []
    assert [path.read_text() for path in kept.iterdir()] == ["as it was"]

"""Prepared data on disk: damaged entries, full disks, and files that change while they are read."""

import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import product
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.errors import DataError
from data_prep.preparation import TRAIN, prepare
from data_prep.table.cache import SUMMARY, clear, entries
from tests.unit.data_prep.rows import alpaca, same, section, whole_entries, write


def shortened(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthened(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        *product([shortened, lengthened, emptied, Path.unlink], [TRAIN, "evaluation.arrow", SUMMARY]),
        *product([flipped], [TRAIN, "evaluation.arrow"]),
    ],
)
def test_a_damaged_entry_is_prepared_again(
    damage: Callable[[Path], None], name: str, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A file of an entry that is shorter or longer than it was, or gone, or of which a bit is another one, is
    noticed, and the entry made anew."""
    data, cached = section(alpaca(rows / "rows.jsonl")), tmp_path / "cache"
    prepare(data, tokenizer, seed=0, cache=cached)
    (entry,) = whole_entries(cached)
    damage(entry / name)
    if name == SUMMARY and damage is lengthened:
        (entry / name).write_text((entry / name).read_text().rstrip("\0") + "}")
    assert damage is flipped or entries(cached) == []
    again = prepare(data, tokenizer, seed=0, cache=cached)
    assert not again.from_cache
    assert same(again, prepare(data, tokenizer, seed=0))
    assert whole_entries(cached) == [entry]
    assert prepare(data, tokenizer, seed=0, cache=cached).from_cache


def test_a_flipped_bit_is_said_once(
    rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    data, cached = section(alpaca(rows / "rows.jsonl")), tmp_path / "cache"
    prepare(data, tokenizer, seed=0, cache=cached)
    (entry,) = whole_entries(cached)
    flipped(entry / TRAIN)
    prepare(data, tokenizer, seed=0, cache=cached)
    assert [record.message for record in caplog.records if "not what was written" in record.message] == [
        f"{entry} is not what was written: the data are prepared again"
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a file system isn't allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("count", [400, 3000])
def test_a_disk_that_fills_up(
    count: int, small_disk: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A disk that fills up, early or at the end, is one DataError; nothing is left, and with more room it
    goes on."""
    file, cached = tmp_path / "rows.jsonl", small_disk / "cache"
    write(file, [{"text": f"{number} " * (240_000 // count)} for number in range(count)])
    data = section({"path": str(file), "format": "text"})
    with pytest.raises(
        DataError, match=f"^prepared data can't be written to {cached}: .*No space left on device; make room"
    ):
        prepare(data, tokenizer, seed=0, cache=cached)
    assert entries(cached) == []
    assert [path.suffix for path in cached.iterdir()] == [".lock"]
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert not prepare(data, tokenizer, seed=0, cache=cached).from_cache
    assert prepare(data, tokenizer, seed=0, cache=cached).from_cache


@pytest.mark.parametrize("below", ["", "below"])
def test_a_cache_that_is_no_folder(
    below: str, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A file where the cache's folder should be, or above it, is one DataError that says what to do."""
    cached = tmp_path / "cache" / below
    (tmp_path / "cache").write_text("")
    with pytest.raises(
        DataError,
        match=f"^prepared data can't be written to {cached}: .*set FINETUNE_CACHE to another folder",
    ):
        prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=cached)
    assert (tmp_path / "cache").read_text() == ""
    assert entries(cached) == []
    assert clear(cached) == (0, 0)


CHANGES = {
    "a row is added": "with FILE.open('a') as file: file.write('{\"text\": \"three\"}\\n')",
    "a letter is changed": "FILE.write_text(FILE.read_text().replace('two', 'owt'))",
    "it is replaced": "NEW = FILE.with_name('new'); NEW.write_text(FILE.read_text().upper()); NEW.rename(FILE)",
    "it is deleted": "FILE.unlink()",
}


@pytest.mark.parametrize("use", ["train", "evaluation"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read(
    change: str, use: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows of a file that changes while it is read are refused, with a cache and without, and none of them is
    kept."""
    code = tmp_path / "change.py"
    code.write_text(
        f"from pathlib import Path\nFILE = Path(__file__).with_name('changing.jsonl')\n"
        f"def parse(row):\n    if row['text'] == 'two':\n        {change_of(change)}\n    return {{'text': "
        f"row['text']}}\n"
    )
    changing, still = tmp_path / "changing.jsonl", tmp_path / "still.jsonl"
    write(still, [{"text": "still"}])
    sources = [{"path": str(path), "format": "python", "code": str(code)} for path in (changing, still)]
    train, held_out = sources if use == "train" else reversed(sources)
    data, allowed = section(train, evaluation={"sources": [held_out]}), sha256(code.read_bytes()).hexdigest()
    for cached in (None, tmp_path / "cache"):
        write(changing, [{"text": "one"}, {"text": "two"}])
        with pytest.raises(
            DataError, match=r"^a file changed while it was read; run again when it is complete$"
        ):
            prepare(data, tokenizer, seed=0, cache=cached, allow_code=[allowed])
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def change_of(name: str) -> str:
    return CHANGES[name].replace("\n", "\n        ")

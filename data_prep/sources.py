"""Where rows come from: local files, data sets of the Hugging Face hub, generators of this package."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.config import FileSource, HubSource, OrdersSource, Source
from data_prep.errors import DataError

COMMIT = re.compile(r"[0-9a-f]{40}")
LONG_NUMBER = "a whole number has more digits than can be read; put it in quotes"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read."""

    place: str
    """Where it stands, for messages: "rows.json row 17", "rows.jsonl:17"."""

    values: dict[str, Any]


def source_name(source: Source) -> str:
    """A name for reports and digests; no two sources with different rows share one."""
    if isinstance(source, FileSource):
        return source.path
    if isinstance(source, HubSource):
        name = "/".join(part for part in (source.dataset, source.config, source.split) if part)
        return f"{name}@{source.revision}" if source.revision else name
    return f"{source.generated}/{source.split} ({source.rows} rows, seed {source.seed})"


def read_rows(source: Source) -> Iterator[Row]:
    """The rows of a source, in its order. Raises DataError with the file and the row, line or byte that is wrong."""
    if isinstance(source, FileSource):
        return _read_file(source)
    if isinstance(source, HubSource):
        return _read_hub(source)
    return _read_orders(source)


def source_digest(source: Source) -> str:
    """What identifies a source's content.

    A file: the sha256 of its bytes. A generator: the sha256 of its name, version and options. A hub data set:
    "revision:COMMIT", because a commit of the hub fixes its content.
    """
    if isinstance(source, HubSource):
        return f"revision:{_hub_commit(source)}"
    if isinstance(source, OrdersSource):
        from data_prep.orders import VERSION

        identity = {"version": VERSION} | source.model_dump(include={"generated", "split", "rows", "seed"})
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    try:
        with _existing(Path(source.path)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{source.path} can't be read: {error.strerror or error}") from error


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"{path} is a folder; data.*.path takes one file ({', '.join(READERS)})")
    if not path.is_file():
        raise DataError(f"{path} does not exist; a relative path is looked up from the recipe file that names it")
    return path


def _read_file(source: FileSource) -> Iterator[Row]:
    try:
        yield from _rows_of_file(Path(source.path))
    except OSError as error:
        raise DataError(f"{source.path} can't be read: {error.strerror or error}") from error


def _rows_of_file(path: Path) -> Iterator[Row]:
    _existing(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name} ends in {path.suffix!r}; files that can be read end in {', '.join(READERS)}")
    found = False
    for row in reader(path):
        found = True
        yield row
    if not found:
        raise DataError(f"{path.name} holds no rows")


def _decode(content: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path.name}:{line}: byte {content[error.start]:#04x} is not UTF-8; "
            f"convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
        ) from error


def _read_json(path: Path) -> Iterator[Row]:
    text = _decode(path.read_bytes(), path)
    if not text.strip():
        raise DataError(f"{path.name} is empty")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line is JSONL: name the file .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path.name}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}{hint}") from error
    except RecursionError as error:
        raise DataError(f"{path.name}: the JSON is nested too deeply to be read") from error
    except ValueError as error:
        raise DataError(f"{path.name}{_row_of_long_number(text)}: {LONG_NUMBER}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path.name} holds {_described(rows)}; a list of objects was expected")
    for number, values in enumerate(rows, start=1):
        yield _row(f"{path.name} row {number}", values)


def _row_of_long_number(text: str) -> str:
    """Which row of a JSON list holds a whole number with more digits than Python reads."""

    def holds(value: Any) -> bool:
        if isinstance(value, dict | list):
            return any(holds(below) for below in (value.values() if isinstance(value, dict) else value))
        return value is too_long

    too_long, longest = object(), sys.get_int_max_str_digits()
    rows = json.loads(text, parse_int=lambda digits: too_long if len(digits.lstrip("-")) > longest else 0)
    found = [number for number, row in enumerate(rows if isinstance(rows, list) else [], start=1) if holds(row)]
    return f" row {found[0]}" if found else ""


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            line = _decode(content, path, number)
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                hint = "; a list of objects is JSON: name the file .json" if line.strip() == "[" else ""
                raise DataError(f"{path.name}:{number}:{error.colno}: invalid JSON: {error.msg}{hint}") from error
            except RecursionError as error:
                raise DataError(f"{path.name}:{number}: the JSON is nested too deeply to be read") from error
            except ValueError as error:
                raise DataError(f"{path.name}:{number}: {LONG_NUMBER}") from error
            yield _row(f"{path.name}:{number}", values)


def _read_paragraphs(path: Path) -> Iterator[Row]:
    """A row for each paragraph (lines up to an empty one), because a whole book is longer than any document may be."""
    paragraph: list[str] = []
    first = 0
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            line = _decode(content, path, number).rstrip()
            if line:
                first = first if paragraph else number
                paragraph.append(line)
            elif paragraph:
                yield Row(f"{path.name}:{first}", {"text": "\n".join(paragraph)})
                paragraph = []
    if paragraph:
        yield Row(f"{path.name}:{first}", {"text": "\n".join(paragraph)})


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".json": _read_json, ".jsonl": _read_jsonl, ".txt": _read_paragraphs}
"""What reads a file, by the end of its name."""


def _row(place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise DataError(f"{place} is {_described(values)}; an object with named columns was expected")
    return Row(place, values)


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"one object with the keys {', '.join(map(repr, list(value)[:5])) or '(none)'}"
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def _read_orders(source: OrdersSource) -> Iterator[Row]:
    from data_prep.orders import order_rows

    for number, values in enumerate(order_rows(source.split, source.rows, source.seed), start=1):
        yield Row(f"orders/{source.split} row {number}", values)


def _hub_token() -> str | bool:
    """HF_TOKEN from the environment; False where there is none, so that no other place is looked at."""
    return os.environ.get("HF_TOKEN") or False


def _hub_advice(source: HubSource) -> str:
    return (
        "check its name, revision and your connection (a private data set needs HF_TOKEN in the environment); without a "
        f"connection, name a full commit of {source.dataset} that was downloaded before as the revision, or save the rows "
        "to a .jsonl file and give its path"
    )


@lru_cache
def _hub_commit(source: HubSource) -> str:
    """The commit that the source's revision names; a full commit is not looked up, anything else once a process."""
    if source.revision is not None and COMMIT.fullmatch(source.revision):
        return source.revision
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        commit = HfApi(token=_hub_token()).dataset_info(source.dataset, revision=source.revision, timeout=30).sha
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise DataError(
            f"data set {source.dataset}: the hub did not give its commit ({error}); {_hub_advice(source)}"
        ) from error
    if commit is None:
        raise DataError(f"data set {source.dataset}: the hub names no commit for revision {source.revision!r}")
    return commit


def _read_hub(source: HubSource) -> Iterator[Row]:
    commit = _hub_commit(source)
    import datasets

    try:
        rows = datasets.load_dataset(source.dataset, source.config, split=source.split, revision=commit, token=_hub_token())
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data set {source_name(source)} could not be loaded: {error}; {_hub_advice(source)}") from error
    for number, values in enumerate(rows, start=1):
        yield _row(f"{source_name(source)} row {number}", values)

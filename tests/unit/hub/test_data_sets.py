"""Data sets of a hub that answers."""

import json
from pathlib import Path

import pytest

from data_prep.config import HubSource
from data_prep.errors import DataError
from data_prep.sources import read_rows
from data_prep.sources.hub import hub_commit
from tests.support.hub_server import TOKEN, Fault, Hub

ROWS = [{"text": f"row {number}"} for number in range(5)]


@pytest.fixture
def rows(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of rows, and the library of data sets on this hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    # It would try again for minutes.
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL", 0)
    hub_commit.cache_clear()
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_data_set(streaming: bool, hub: Hub, rows: Path) -> None:
    hub.add("me/rows", rows, kind="dataset")
    source = HubSource(dataset="me/rows", format="text", split="train")
    assert [row.values for row in read_rows(source, streaming=streaming)] == ROWS


def test_the_lock_holds_the_commit_that_was_read(hub: Hub, rows: Path) -> None:
    """A branch is looked up once; its commit then stands for it, and can be named later."""
    repository = hub.add("me/rows", rows, kind="dataset")
    source = HubSource(dataset="me/rows", format="text")
    first = hub_commit(source)
    repository.add({"train.jsonl": b'{"text": "other"}\n'})
    assert hub_commit(source) == first == next(iter(repository.commits))
    pinned = HubSource(dataset="me/rows", format="text", revision=first)
    assert [row.values for row in read_rows(pinned)] == ROWS


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streamed"])
@pytest.mark.parametrize(
    ("options", "fault", "token", "expected"),
    [
        ({"gated": True}, None, None, "gated|HF_TOKEN"),
        ({"private": True}, None, None, "HF_TOKEN"),
        ({"gated": True}, None, "hf_" + "b" * 34, "HF_TOKEN"),
        ({}, Fault("GET /api/datasets", 429, 99), None, "429"),
        pytest.param(
            {}, Fault(r"GET .*train.jsonl", times=999), None, "could not be loaded", marks=pytest.mark.long
        ),
    ],
    ids=["gated", "private", "gated for this token", "rate limit", "cut"],
)
def test_what_the_hub_refuses_is_a_data_error(
    options: dict[str, bool],
    fault: Fault | None,
    token: str | None,
    expected: str,
    streaming: bool,
    hub: Hub,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one message with what to do, whether the rows are downloaded or streamed."""
    hub.add("me/rows", rows, kind="dataset", **options)
    hub.faults = [] if fault is None else [fault]
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match=expected) as found:
        list(read_rows(HubSource(dataset="me/rows", format="text"), streaming=streaming))
    assert "data set me/rows" in str(found.value)


def test_a_token_opens_a_gated_data_set(hub: Hub, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/rows", rows, kind="dataset", gated=True, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(list(read_rows(HubSource(dataset="me/rows", format="text")))) == len(ROWS)

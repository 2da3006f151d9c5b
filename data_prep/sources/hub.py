"""Data sets on the Hugging Face hub."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from data_prep.config import HubSource
from data_prep.errors import DataError
from data_prep.sources.columnar import BATCH_ROWS, rows_of_batches
from data_prep.sources.rows import Bad, Row

if TYPE_CHECKING:
    import pyarrow

COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_name(source: HubSource) -> str:
    """The data set's name in messages and digests."""
    name = "/".join(part for part in (source.dataset, source.config, source.split) if part)
    return f"{name}@{source.revision}" if source.revision else name


def hub_token() -> str | bool:
    """HF_TOKEN from the environment; False if there is none, so that no other location is searched for one.

    Raises DataError for a token that can't be sent: HTTP headers are ASCII.
    """
    token = os.environ.get("HF_TOKEN") or ""
    unexpected = [
        character for character in token.strip() if not character.isascii() or not character.isprintable()
    ]
    if unexpected:
        raise DataError(f"HF_TOKEN holds {unexpected[0]!r}; expected an ASCII token (hf_...): copy it again.")
    return token or False


def _hub_advice(source: HubSource) -> str:
    return (
        "check its name, revision and your connection (a private data set needs HF_TOKEN in the "
        f"environment); offline, set revision to the full commit of a copy of {source.dataset} that was "
        "downloaded before, or save the rows to a .jsonl file and give its path"
    )


@lru_cache
def hub_commit(source: HubSource) -> str:
    """The commit that the source's revision names; a full commit is not looked up, anything else once per
    process."""
    if source.revision is not None and COMMIT.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    # HTTPError is the hub client's own: raised when the hub is unreachable, and for every response other than
    # 200.
    try:
        commit = (
            HfApi(token=hub_token()).dataset_info(source.dataset, revision=source.revision, timeout=30).sha
        )
    except (HFValidationError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"data set {source.dataset}: its commit could not be looked up on the hub ({error}); "
            f"{_hub_advice(source)}"
        ) from error
    if commit is None:
        raise DataError(f"data set {source.dataset}: the hub has no commit for revision {source.revision!r}")
    return commit


def read_hub(source: HubSource, bad: Bad, *, streaming: bool = False) -> Iterator[Row]:
    """The rows of a data set at its commit, like Arrow files; downloaded first, or with `streaming` as they
    are read."""
    first = 1
    for table in _tables(source, hub_commit(source), streaming=streaming):
        yield from rows_of_batches([table], table.schema, hub_name(source), bad, first=first)
        first += table.num_rows


def _tables(source: HubSource, commit: str, *, streaming: bool) -> "Iterator[pyarrow.Table]":
    """The rows in batches. Raises DataError where the hub gives none, or no more."""
    import datasets
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        rows = datasets.load_dataset(
            source.dataset,
            source.config,
            split=source.split,
            revision=commit,
            token=hub_token(),
            streaming=streaming,
        )
        yield from rows.with_format("arrow").iter(BATCH_ROWS)
    except (HTTPError, OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data set {hub_name(source)} could not be loaded: {error}; {_hub_advice(source)}"
        ) from error

"""The rows of a source that a recipe takes: the first ones, or a subset that a seed draws."""

from collections.abc import Callable, Iterator
from itertools import islice

from data_prep.config import Source
from data_prep.errors import DataError
from data_prep.sources.rows import Row


def subset_of(source: Source) -> str:
    """Which rows of a source are taken, for reports; empty for all."""
    first = f"the first {source.max_rows:,} rows" if source.max_rows is not None else ""
    if source.sample_rows is None:
        return first
    drawn = f"{source.sample_rows:,} rows drawn by sample_seed {source.sample_seed or 0}"
    return f"{drawn} from {first}" if first else drawn


def taken(
    source: Source, name: str, rows: Iterator[Row], again: Callable[[], Iterator[Row]]
) -> Iterator[Row]:
    """The rows of a source that max_rows and sample_rows leave, in the source's order.

    `again` reads the same rows from the beginning: to draw a subset, their number has to be known first.
    Raises DataError if there are fewer rows than sample_rows.
    """
    if source.sample_rows is None:
        yield from islice(rows, source.max_rows)
        return
    import numpy as np  # `check` reads no rows

    count = sum(1 for _ in islice(again(), source.max_rows))
    if count < source.sample_rows:
        raise DataError(
            f"{name}: sample_rows is {source.sample_rows:,}, and there are only {count:,} rows to draw from; "
            "lower it, or remove it to take all of them"
        )
    drawn = np.zeros(count, bool)
    drawn[np.random.default_rng(source.sample_seed or 0).permutation(count)[: source.sample_rows]] = True
    # Not strict: a file that changes meanwhile is found out by its time.
    first = rows if source.max_rows is None else islice(rows, count)
    yield from (row for row, chosen in zip(first, drawn.tolist(), strict=False) if chosen)

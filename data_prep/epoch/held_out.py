"""Which rows are held out to evaluate on. Equal rows stay together, so that none is on both sides."""

import random

import numpy as np

from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.sources import source_name
from data_prep.table.documents import DocumentTable


def hold_out(
    table: DocumentTable, section: DataSection, seed: int, documents_per_row: int
) -> tuple[DocumentTable, DocumentTable] | None:
    """The rows split into those to train on and those to evaluate on, both in their order; None if the
    section holds none of them out.

    Of evaluation.fraction or evaluation.rows, or of each source's evaluation_rows. Raises DataError if there
    are no rows on one side.
    """
    _, groups = np.unique(table.fingerprints, return_inverse=True)
    split, held = section.evaluation, np.zeros(len(table), bool)
    if split is not None and split.sources is None:
        rows = len(table) // documents_per_row
        wanted = round(rows * split.fraction) if split.fraction is not None else split.rows or 0
        held = _drawn(~held, groups, wanted * documents_per_row, seed)
        name, which = ("fraction", split.fraction) if split.fraction is not None else ("rows", split.rows)
        if held.sum() in (0, len(table)):
            side = "train" if held.any() else "evaluate"
            raise DataError(
                f"data.evaluation.{name} {which} of {rows:,} rows leaves no rows to {side} on; change "
                f"{'the fraction' if name == 'fraction' else 'their number'}"
            )
    elif not any(source.evaluation_rows for source in section.train):
        return None
    for index, source in enumerate(section.train):
        if source.evaluation_rows is not None:
            of_source = table.sources == index
            rows = int(of_source.sum()) // documents_per_row
            own = _drawn(of_source, groups, source.evaluation_rows * documents_per_row, seed)
            if source.evaluation_rows >= rows or not own.any():
                side = "train" if source.evaluation_rows >= rows else "evaluate"
                raise DataError(
                    f"{source_name(source)}: evaluation_rows {source.evaluation_rows:,} of {rows:,} rows "
                    f"leaves no rows to {side} on; change their number"
                )
            held |= own
    return table.rows(np.flatnonzero(~held)), table.rows(np.flatnonzero(held))


def _drawn(eligible: np.ndarray, groups: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Which documents (N) are drawn: at most `wanted`, of the eligible ones (N), with all that are equal to
    them.

    `groups` (N) are the numbers of the equal ones; those that have one that isn't eligible are left.
    """
    order = np.flatnonzero(eligible).tolist()
    random.Random(seed).shuffle(order)  # noqa: S311 - a draw that can be repeated, no secret
    sizes, others = np.bincount(groups), np.bincount(groups, weights=~eligible)
    taken, count = set[int](), 0
    for row in order:
        group = int(groups[row])
        if group not in taken and not others[group] and count + sizes[group] <= wanted:
            taken.add(group)
            count += int(sizes[group])
        if count == wanted:
            break
    found: np.ndarray = np.isin(groups, np.fromiter(taken, np.int64, len(taken)))
    return found

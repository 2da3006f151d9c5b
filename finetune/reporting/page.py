"""The page: runs as one HTML file. It loads nothing; its one script, which tells values under the pointer, is
known to the page's policy by its hash, so that no other one runs."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import data_prep.audit.html_report as audit
from data_prep.disk import write_private
from data_prep.pages import page_environment
from data_prep.text import printable
from finetune.errors import FinetuneError
from finetune.reporting import tables
from finetune.reporting.charts import HEIGHT, WIDTH, charts_of
from finetune.reporting.record import Record, read_record
from finetune.runs.commands import shell_command
from finetune.runs.folder import RunFolder, open_run

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
TEMPLATE = "report.html.jinja"
LONGEST_TEXT = 4_000
"""Characters of a prompt or an answer that are shown."""
MOST_SAMPLES = 12
MOST_WARNINGS = 50


def write_report(runs: Sequence[Path], output: Path, *, overwrite: bool = False) -> Path:
    """Write a page of one run, or of several side by side, into a file for its owner alone; its path.

    A part that a run lacks or has damaged is named on the page. Raises CheckpointError for a folder that is
    no run, FinetuneError where the file is there without `overwrite`, or can't be.
    """
    folders = [open_run(path) for path in dict.fromkeys(run.expanduser().resolve() for run in runs)]
    if not folders:
        raise FinetuneError("a report is of one run or several: name them.")
    output = output.expanduser()
    if output.is_dir() or not output.absolute().parent.is_dir():
        what = "is a folder" if output.is_dir() else f"can't be written: there is no folder {output.parent}"
        raise FinetuneError(f"{output} {what}; name a file such as report.html.")
    if output.exists() and not overwrite:
        raise FinetuneError(f"{output} exists; name a new file, or give --overwrite to replace it.")
    write_private(output, page_of(folders))
    return output


def page_of(folders: Sequence[RunFolder]) -> str:
    """The page of these runs."""
    return report_environment().get_template(TEMPLATE).render(values_of(folders))


def values_of(folders: Sequence[RunFolder]) -> dict[str, Any]:
    """What the template needs to show these runs, for a page that extends it."""
    same = len({run.name for run in folders}) < len(folders)
    records = [read_record(run, str(run.path) if same else run.name) for run in folders]
    several = len(records) > 1
    return {
        "records": records,
        "several": several,
        "title": ", ".join(record.name for record in records),
        "charts": charts_of([(record.name, record.points) for record in records]),
        "differences": tables.differences(records) if several else [],
        "comparable": all(record.lock is not None for record in records),
        "side_by_side": tables.side_by_side(records) if several else [],
        "resume": _resume,
        "script": hover_script(),
        "script_hash": base64.b64encode(hashlib.sha256(hover_script().encode()).digest()).decode(),
        "width": WIDTH,
        "height": HEIGHT,
        "most_samples": MOST_SAMPLES,
        "most_warnings": MOST_WARNINGS,
        "tables": tables,
    }


def _resume(record: Record) -> str:
    """What to type to go on with a run."""
    return shell_command("train", "--resume", record.run.path)


def _clipped(text: str) -> str:
    """A text of data or of a model, cut where it is as long as a book."""
    text = printable(text)
    more = len(text) - LONGEST_TEXT
    return text if more <= 0 else f"{text[:LONGEST_TEXT]} … ({more:,} characters more)"


@cache
def hover_script() -> str:
    """What tells a chart's values under the pointer."""
    return (HERE / "hover.js").read_text(encoding="utf-8").strip()


@cache
def report_environment(*folders: Path) -> "Environment":
    """The report's templates, and those of folders that extend them."""
    filters = audit.SOURCE_FILTERS | {"clipped": _clipped, "number": tables.number}
    return page_environment(*folders, HERE, audit.TEMPLATES, clean=printable, filters=filters)

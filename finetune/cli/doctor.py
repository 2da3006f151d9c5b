"""finetune doctor: what this machine offers, what will be used, and why."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import JsonOption, out, print_json

if TYPE_CHECKING:
    from finetune.machine import Fact


def doctor(
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Show which method trains under which way of sharding.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine offers.

    And what will be used of it, and why.
    """
    if matrix:
        print_matrix(as_json)
        return
    from finetune import api

    findings = api.doctor()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    elif sys.stdout.isatty():
        print_table(findings)
    else:
        print_plain(findings)


def print_matrix(as_json: bool) -> None:
    """The engines' own words; reasons stand below the table."""
    from finetune.engines.tables import matrix, reasons

    found = matrix()
    if as_json:
        cells = {
            method: {
                engine: "works" if why is None else f"{why.reason}; take {why.nearest}"
                for engine, why in row.items()
            }
            for method, row in found.items()
        }
        print_json(cells)
        return
    out("method  " + "  ".join(next(iter(found.values()))))
    for method, row in found.items():
        words = [("works" if why is None else "-").ljust(len(engine)) for engine, why in row.items()]
        out(f"{method:7} " + "  ".join(words).rstrip())
    for reason in reasons():
        out(f"-  {reason}")
    out("in fp32 and bf16; each cell that works is run by tests/distributed, with two processes on the CPU")


def print_table(findings: "list[Fact]") -> None:
    """A table for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "what", "found", "remark"):
        table.add_column(heading, overflow="fold")
    topic = ""
    for finding in findings:
        style = "red" if finding.remark.startswith(("MISSING", "OUTSIDE")) else "dim"
        shown = "" if finding.topic == topic else finding.topic
        table.add_row(Text(shown, "bold"), finding.name, Text(finding.value), Text(finding.remark, style))
        topic = finding.topic
    Console().print(table)


def print_plain(findings: "list[Fact]") -> None:
    """Aligned text for everything else."""
    widths = [
        max(len(getattr(finding, field)) for finding in findings) for field in ("topic", "name", "value")
    ]
    for finding in findings:
        cells = (
            finding.topic.ljust(widths[0]),
            finding.name.ljust(widths[1]),
            finding.value.ljust(widths[2]),
            finding.remark,
        )
        out("  ".join(cells).rstrip())

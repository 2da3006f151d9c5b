"""finetune data: what becomes of a recipe's rows, and whether they teach what they should."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finetune.cli.common import (
    AllowCodeOption,
    JsonOption,
    OverridesArgument,
    colour_wanted,
    out,
    print_json,
    printable,
    tell_messages,
)

if TYPE_CHECKING:
    from data_prep.audit.audit import Audit, AuditRow
    from finetune.recipe.load import LoadedRecipe


LEARNED, READ = "\x1b[1;32m", "\x1b[2m"
"""Bold green for what is learned, pale for what is only read."""


def data(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's file, or the name of a shipped one.")
    ] = None,
    overrides: OverridesArgument = None,
    preview: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show N documents, what is learned in colour.")
    ] = 0,
    rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Read only the first N rows of each source.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the audit as one page.")
    ] = None,
    allow_code: AllowCodeOption = None,
    cache: Annotated[
        str | None, typer.Option(metavar="list|clear", help="Show or delete prepared data.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prepare and audit a recipe's data.

    Counts by source and reason, lengths, what is learned. Exits with code 3 if rows have no supervised
    tokens, answers lack an EOS, training rows are in the evaluation too, or a BOS is doubled, unless
    data.allow_findings names it.
    """
    from finetune.errors import CheckFailed, LaunchError

    if cache is not None:
        others = {
            "a recipe": recipe,
            "--preview": preview,
            "--rows": rows,
            "--html": html,
            "--allow-code": allow_code,
        }
        beside = [name for name, value in others.items() if value]
        if beside or cache not in ("list", "clear"):
            shown = f"{cache} with {' and '.join(beside)}" if beside else cache
            raise LaunchError(
                f"got --cache {shown}; expected `finetune data --cache list` or `--cache clear` alone."
            )
        _cache("list" if cache == "list" else "clear", as_json=as_json)
        return
    if recipe is None:
        raise LaunchError("name a recipe: finetune data RECIPE (or finetune data --cache list).")
    from finetune import api

    tell_messages(as_json)
    loaded = api.load_recipe(recipe, overrides or [])
    audit = api.audit(loaded, first_rows=rows, samples=preview, allow_code=allow_code or ())
    if html is not None:
        audit.to_html(html, title=_title(loaded, rows), clean=printable)
    if as_json:
        print_json(audit.as_dict())
        raise typer.Exit(CheckFailed.exit_code if audit.failed else 0)
    _print(audit)
    if html is not None:
        out(f"page {html}")
    if audit.failed:
        names = ", ".join(audit.failed)
        raise CheckFailed(
            f"the audit fails: {names}. Fix the rows, or allow this with data.allow_findings: [{names}]."
        )
    out("the audit holds")


def _title(loaded: "LoadedRecipe", rows: int | None) -> str:
    """What a page of the audit is called."""
    streaming = loaded.recipe.data.streaming
    rows = rows or (streaming.buffer_rows if streaming is not None else None)
    return loaded.path.stem if rows is None else f"{loaded.path.stem}, the first {rows:,} rows of each source"


def _print(audit: "Audit") -> None:
    import sys

    from data_prep.audit.audit import BAR, audit_lines, finding_lines

    encoding = sys.stdout.encoding or "ascii"
    bars = BAR if BAR.encode(encoding, "ignore") else "#"
    for line in audit_lines(audit):
        out(line.replace(BAR, bars))
    for sample in audit.samples:
        out("")
        _print_sample(sample)
    findings = finding_lines(audit)
    for line in ["", *findings] if findings or audit.samples else []:
        out(line)


def _print_sample(sample: "AuditRow") -> None:
    """A document's text: what is learned in green, or between ⟦ and ⟧ where there is no colour."""
    import sys

    out(f"{sample.place}: {sample.tokens:,} tokens, {sample.supervised_tokens:,} learned")
    coloured, text = colour_wanted(sys.stdout), ""
    for piece in sample.pieces:
        weight = "" if piece.weight in (0, 1) else f"weight {piece.weight:g}: "
        shown = printable(weight + piece.text)
        if coloured:
            text += f"{LEARNED if piece.weight else READ}{shown}\x1b[0m"
        else:
            text += f"⟦{shown}⟧" if piece.weight else shown
    print(text.rstrip("\n"), flush=True)


def _cache(verb: Literal["list", "clear"], *, as_json: bool) -> None:
    from data_prep.table.cache import clear, entries
    from finetune.data import data_cache, teacher_cache

    folder = data_cache()
    if verb == "clear":
        cleared: dict[str, Any] = {}
        for prefix, what, own in (
            ("", "prepared data sets", folder), ("teachers_", "stores of teachers' answers", teacher_cache()),
        ):  # fmt: skip
            count, freed = clear(own)
            cleared |= {f"{prefix}folder": str(own), f"{prefix}deleted": count, f"{prefix}bytes": freed}
            if not as_json and (count or not prefix):
                out(f"deleted {count} {what}, {freed / 1e6:,.1f} MB, from {own}")
        if as_json:
            print_json(cleared)
        return
    found = entries(folder)
    if as_json:
        listed = [vars(entry) | {"folder": str(entry.folder)} for entry in found]
        print_json({"folder": str(folder), "entries": listed})
        return
    import datetime

    for entry in found:
        made = datetime.datetime.fromtimestamp(entry.made).isoformat(" ", "seconds")
        out(f"{made}  {entry.bytes / 1e6:>8,.1f} MB  {entry.rows:>9,} documents  {', '.join(entry.sources)}")
    out(f"{len(found)} prepared data sets, {sum(entry.bytes for entry in found) / 1e6:,.1f} MB, in {folder}")

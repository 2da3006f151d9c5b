"""finetune merge: a run or an adapter to full weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import JsonOption, out, print_json

if TYPE_CHECKING:
    from finetune.merge.merge import MergeReport


def merge(
    target: Annotated[str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder or an adapter folder.")],
    output: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    base: Annotated[Path | None, typer.Option(help="The base's folder, in place of the one that the run names.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest safetensors file: 5GB, 500MB.")] = "5GB",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the base's own when absent.")] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with base + adapter on real rows.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into full weights.

    Writes sharded safetensors, and checks that the merged model is the base with its adapter. Exit code 3 when it isn't;
    nothing then stands under the output's name.
    """
    from finetune.merge import merge as merging

    report = merging.merge(
        merging.choose_target(target, base), output, dtype=dtype, max_shard_size=max_shard_size, check=verify
    )
    if as_json:
        print_json(report.as_dict())
        return
    for name, value in lines_of(report):
        out(f"{name:<13} {value}")


def lines_of(report: "MergeReport") -> list[tuple[str, str]]:
    """The report as a person reads it: (name, value) a line."""
    lines = [
        ("base", report.base),
        ("adapter", report.adapter),
        ("output", report.output),
        (
            "weights",
            f"{report.parameters:,} parameters in {report.dtype}, {report.bytes / 1e9:,.2f} GB "
            f"in {report.files} file{'s' * (report.files != 1)}",
        ),
        ("seconds", f"{report.seconds:,.1f}"),
    ]
    found = report.verification
    if found is None:
        lines.append(("verification", "left out (--no-verify)"))
    else:
        lines += [
            ("verification", f"holds, on {found.rows} rows, {found.tokens:,} tokens ({found.texts})"),
            (
                "  logits",
                f"largest difference {found.largest_difference:.2e}, mean {found.mean_difference:.2e}; "
                f"merged in float32 {found.float32_largest_difference:.2e}",
            ),
            (
                "  predictions",
                f"mean KL {found.mean_kl:.2e} nats (the adapter's own effect: {found.adapter_mean_kl:.2e}), "
                f"same likeliest token {found.top1_agreement:.2%}",
            ),
        ]
    return lines + [("note", note) for note in report.notes]

"""finetune merge: a run or adapters to full weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import (
    BaseOption,
    CalibrationOption,
    JsonOption,
    RoundingOption,
    SeedOption,
    out,
    print_json,
    tell_messages,
)

if TYPE_CHECKING:
    from finetune.merging.merge import MergeReport


DESCRIBED = "config, tokenizer, chat template and end of turn are read back as they were trained"


def merge(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run, a checkpoint of one, or an adapter.")
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_OR_ADAPTER]...", help="Further ones, in order.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder to write; it must not exist.")] = None,
    base: BaseOption = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest safetensors file: 5GB, 500MB.")] = "5GB",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; when absent the base's own (a trained head stays float32)."
        ),
    ] = None,
    qlora_base: Annotated[
        str, typer.Option(help="Of a QLoRA adapter: auto (measured), 16bit, nf4 or int8.")
    ] = "auto",
    rounding: RoundingOption = None,
    seed: SeedOption = None,
    calibration: CalibrationOption = None,
    verify: Annotated[str, typer.Option(help="full (tensors, predictions, text), tensors or none.")] = "full",
    undoable: Annotated[
        bool, typer.Option("--undoable", help="Write undo.safetensors, by which finetune unmerge works.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print time, disk and memory, from headers; write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge adapters into full weights.

    Writes sharded safetensors block by block, and checks that the merged model is the base with its adapter.
    Exits with code 3 if that fails; the output folder is then not created.
    """
    from finetune.errors import MergeError

    if plan:
        from finetune.api import load_recipe
        from finetune.merging.plan import plan_merge

        planned = plan_merge(
            target,
            more or [],
            base=base,
            dtype=dtype,
            output=output,
            max_shard_size=max_shard_size,
            check=verify,
            qlora_base=qlora_base,
            rounding=rounding,
            seed=seed,
            calibration=None if calibration is None else load_recipe(calibration).recipe,
            undoable=undoable,
        )
        if as_json:
            print_json(planned.as_dict())
        else:
            for name, value in planned.lines():
                out(f"{name:<13} {value}")
        return
    if output is None:
        raise MergeError(
            "--output is missing: name the folder to write, or --plan to see what it would take."
        )
    from finetune import api

    tell_messages(as_json)
    report = api.merge(
        target,
        output,
        more=more or [],
        base=base,
        dtype=dtype,
        max_shard_size=max_shard_size,
        verify=verify,
        qlora_base=qlora_base,
        rounding=rounding,
        seed=seed,
        calibration=calibration,
        undoable=undoable,
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
        *(("adapter", adapter) for adapter in report.adapters),
        ("output", report.output),
        (
            "weights",
            f"{report.parameters:,} parameters in {report.dtype}, {report.bytes / 1e9:,.2f} GB "
            f"in {report.files} file{'s' * (report.files != 1)}",
        ),
        ("seconds", f"{report.seconds:,.1f}, of which {report.check_seconds:,.1f} for the checks"),
    ]
    if report.rounding is not None:
        lines.append(("rounding", report.rounding.line()))
    if report.left is not None:
        lines.append(("update", report.left.line()))
    if report.undo_bytes is not None:
        share = report.undo_bytes / report.bytes
        lines.append(("undo", f"{report.undo_bytes / 1e6:,.2f} MB, {share:.2%} of the weights"))
    if report.tensors is not None:
        tensors = report.tensors
        lines.append(
            (
                "tensors",
                f"{tensors.identical} of {tensors.tensors} are the base's; of the others "
                f"{tensors.sampled_numbers:,} numbers recomputed in float64, at most "
                f"{tensors.largest_error_ulps:.3f} ulp off",
            )
        )
    if report.described:
        lines.append(("description", DESCRIBED))
    left_out = [("verification", "predictions were left out (--verify)")]
    lines += report.verification.lines() if report.verification is not None else left_out
    warned = "warning: "
    return lines + [
        ("warning" if note.startswith(warned) else "note", note.removeprefix(warned)) for note in report.notes
    ]

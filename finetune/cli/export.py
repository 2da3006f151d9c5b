"""finetune export: a run or a model to a file that others run."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import (
    BaseOption,
    CalibrationOption,
    JsonOption,
    RoundingOption,
    SeedOption,
    note,
    out,
    print_json,
    tell_messages,
)


def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="A run, a checkpoint of one, an adapter, or whole weights."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    format: Annotated[
        str,
        typer.Option(
            help="gguf (a file for llama.cpp and LM Studio), ollama (with a Modelfile), vllm (an adapter as "
            "vLLM loads it), compressed (weights in fp8, int8 or int4 for vLLM) or nf4 (for bitsandbytes)."
        ),
    ],
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="f16 (when absent), f32, bf16, q8_0, q5_0, q5_1, q4_0, q4_1, q6_k, q5_k_m, q4_k_m, q3_k_m, "
            "q2_k; with compressed fp8, int8 or int4.",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="With compressed int8 and int4, how many numbers have a scale; when absent 128."
        ),
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="The adapter by itself, for llama.cpp's --lora.")
    ] = False,
    base: BaseOption = None,
    verify: Annotated[
        str,
        typer.Option(
            help="full (the export in llama.cpp or transformers beside what was exported), tensors or none."
        ),
    ] = "full",
    max_kl: Annotated[
        float | None,
        typer.Option(help="The largest mean KL of the export's predictions, in nats a token; else by type."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="With vllm, of what stands for a DoRA; when absent the adapter's own."),
    ] = None,
    rounding: RoundingOption = None,
    seed: SeedOption = None,
    calibration: CalibrationOption = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Then upload the folder to the hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push, as a private repository.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a model to a file that other programs run, and check it there.

    An adapter is merged while the file is written. Exits with code 3 if the check fails; the output folder is
    then not created.
    """
    from finetune import api
    from finetune.errors import ExportError

    if private and push is None:
        raise ExportError("--private is for --push: leave it out, or name the repository.")
    if push is not None:
        from finetune.hub.push import refuse_unpushable

        refuse_unpushable(push)
    tell_messages(as_json)
    report = api.export(
        target,
        output,
        format=format,
        quantize=quantize,
        adapter_only=adapter_only,
        base=base,
        verify=verify,
        max_kl=max_kl,
        rank=rank,
        rounding=rounding,
        seed=seed,
        calibration=calibration,
        group_size=group_size,
    )
    pushed = None if push is None else api.push(output, push, private=private)
    if as_json:
        print_json(report.as_dict() | ({"pushed": pushed.as_dict()} if pushed is not None else {}))
        return
    for name, value in report.lines():
        out(f"{name:<13} {value}")
    if pushed is not None:
        for text in pushed.notes:
            note(text)
        out(f"{'pushed':<13} {pushed.url}, commit {pushed.commit}")

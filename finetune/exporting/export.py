"""A run or a model to a file that others run: written from base and adapter while they are merged, read back,
and checked in the program that will run it."""

import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from finetune.errors import CheckFailed, ExportError
from finetune.exporters.gguf.exporter import FILE, Gguf, GgufPlan
from finetune.exporters.gguf.library import WHEEL, has_library
from finetune.exporters.gguf.types import QUANTIZATIONS
from finetune.exporting.inputs import ExportInputs, read_inputs
from finetune.exporting.report import RECORD, ExportReport
from finetune.exporting.tensors import compare_tensors
from finetune.extras import refuse_without
from finetune.merging.output import failed_name, refuse_existing, refuse_small_disk, unfinished
from finetune.merging.verification.lazy_model import fits_in_memory, model_of
from finetune.models.device import choose_threads
from finetune.runs.target import Target

FORMATS = ("gguf",)
CHECKS = ("full", "tensors", "none")


def export(
    target: Target,
    output: Path,
    *,
    format: str,
    quantize: str | None = None,
    check: str = "full",
    max_kl: float | None = None,
) -> ExportReport:
    """Write a target in a format into the folder `output`.

    gguf: `quantize` is the type of the weights (f16 where it is None). `check` is full (the file in llama.cpp
    beside what was exported), tensors (read back and compared, without llama.cpp) or none; `max_kl` bounds
    the mean KL of the predictions, in nats a token. The folder is written beside its final name and renamed
    when it is whole and checked; after an error nothing is left. Raises ExportError for what the format can't
    hold, and CheckFailed where a check doesn't hold: the files then lie in OUTPUT.failed, to look at.
    """
    started = time.perf_counter()
    output = Path(os.path.abspath(output.expanduser()))
    _refuse_bad_options(format, quantize, check, max_kl)
    refuse_existing(output)
    inputs, kind = read_inputs(target), quantize or "f16"
    exact = inputs.weights(torch.float32)
    plan = Gguf(kind).plan(inputs.weights(_computed_in(kind)), inputs.description)
    shard, _ = plan.layout()
    with unfinished(output) as folder:
        refuse_small_disk(output, shard.size, "the export")
        written = plan.write(folder, choose_threads())
        report = _report(inputs, plan, output, folder, written.bytes)
        began = time.perf_counter()
        if check != "none":
            report = replace(report, tensors=compare_tensors(plan, exact, folder, written.xxh3_128))
        if check == "full":
            report = _in_llama_cpp(report, inputs, plan, folder, max_kl)
        now = time.perf_counter()
        report = replace(report, seconds=round(now - started, 1), check_seconds=round(now - began, 1))
        report.write(folder)
        if report.failures:
            folder.rename(failed_name(output))
            raise CheckFailed(
                f"the export does not hold: {'; '.join(report.failures)}. {output} was not created; the "
                f"files are in {failed_name(output)}, measurements in {RECORD}."
            )
    return report


def _computed_in(quantize: str) -> torch.dtype:
    """What weights are rounded to before they are encoded: as a merge into bfloat16 is, else exact."""
    return torch.bfloat16 if quantize == "bf16" else torch.float32


def _refuse_bad_options(format: str, quantize: str | None, check: str, max_kl: float | None) -> None:
    for option, value, known in (
        ("--format", format, FORMATS),
        ("--quantize", quantize or "f16", tuple(QUANTIZATIONS)),
        ("--verify", check, CHECKS),
    ):
        if value not in known:
            raise ExportError(f"{option} is {value!r}; expected one of {', '.join(known)}.")
    if max_kl is not None and not 0 < max_kl < float("inf"):
        raise ExportError(f"--max-kl is {max_kl}; expected a number of nats above 0.")
    if max_kl is not None and check != "full":
        raise ExportError(
            f"--max-kl bounds what llama.cpp predicts, and --verify {check} doesn't run it: leave one out."
        )
    if max_kl is not None:
        refuse_without(WHEEL, "--max-kl, which bounds what llama.cpp predicts,")


def _report(inputs: ExportInputs, plan: GgufPlan, output: Path, folder: Path, size: int) -> ExportReport:
    parts = inputs.parts
    return ExportReport(
        model=parts.target.description,
        base=parts.base.identity["name"],
        adapter=str(parts.target.adapter) if parts.target.adapter is not None else None,
        output=str(output),
        format=Gguf.name,
        quantize=plan.quantize,
        files=tuple(sorted(path.name for path in folder.iterdir())),
        bytes=size,
        seconds=0.0,
        check_seconds=0.0,
        coarser={name: choice.kind for name, choice in plan.tensors.coarser().items()},
        notes=tuple(plan.described.notes),
        tensors=None,
        llama_cpp=None,
        not_run=None,
    )


def _in_llama_cpp(
    report: ExportReport, inputs: ExportInputs, plan: GgufPlan, folder: Path, max_kl: float | None
) -> ExportReport:
    """The report with what llama.cpp makes of the file, or with why it did not run."""
    file, exact = folder / FILE, inputs.weights(torch.float32)
    if not has_library():
        return replace(report, not_run='xllamacpp is not installed (pip install "llama-finetune[gguf]")')
    if not fits_in_memory(exact) or psutil.virtual_memory().available < 3 * file.stat().st_size:
        return replace(report, not_run="the model in float32 and the file are larger than the free memory")
    from finetune.exporting.llama_cpp.check import Exported, check_in_llama_cpp

    said = plan.described.values
    exported = Exported(
        model_of(exact, inputs.config.expected()),
        inputs.parts.tokenizer,
        inputs.parts.documents[0],
        said[f"{plan.described.family.gguf.name}.context_length"],
        said.get("tokenizer.ggml.pre"),
    )
    return replace(report, llama_cpp=check_in_llama_cpp(file, exported, plan.quantize, max_kl))

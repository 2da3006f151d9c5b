"""A run or a model to a file that others run: written from base and adapter while they are merged, read back,
and checked in the program that will run it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune.exporters.base import Written
from finetune.exporters.gguf.described import describe
from finetune.exporters.gguf.exporter import Gguf, GgufPlan
from finetune.exporters.gguf.library import WHEEL, has_library
from finetune.exporters.gguf.lora import LoraTensors
from finetune.exporters.gguf.tensors import ModelTensors
from finetune.exporting.adapter_only import base_file, plan_adapter, plan_base
from finetune.exporting.inputs import ExportInputs, read_inputs
from finetune.exporting.ollama.modelfile import MODELFILE, modelfile
from finetune.exporting.ollama.translation import translate
from finetune.exporting.options import SIXTEEN_BITS, ExportOptions
from finetune.exporting.quantized import FOLDERS, export_quantized, folder_format
from finetune.exporting.report import ExportReport
from finetune.exporting.tensors import TensorComparison, compare_tensors, read_back
from finetune.exporting.vllm import VllmAdapter, export_for_vllm
from finetune.merging.output import refuse_existing, refuse_small_disk, unfinished
from finetune.merging.rounding.choice import RoundingChoice
from finetune.merging.rounding.request import RoundingRequest
from finetune.merging.rounding.tokenizer import refuse_other_tokenizer
from finetune.merging.verification.lazy_model import fits_in_memory, model_of
from finetune.models.device import choose_threads
from finetune.runs.target import Target


def export(target: Target, output: Path, options: ExportOptions) -> ExportReport | VllmAdapter:
    """Write a target in a format into the folder `output`.

    The folder is written beside its final name and renamed when it is whole and checked; after an error
    nothing is left. Raises ExportError for what the format can't hold, and CheckFailed where a check doesn't
    hold: the files then lie in OUTPUT.failed, to look at.
    """
    started = time.perf_counter()
    output = Path(os.path.abspath(output.expanduser()))
    options.refuse_bad()
    refuse_existing(output)
    if options.format == "vllm":
        return export_for_vllm(target, output, options.rank)
    if options.format in FOLDERS:
        form = folder_format(options.format, options.quantize, options.group_size)
        return export_quantized(target, output, form, options.check, options.max_kl)
    inputs = read_inputs(target)
    work = _Adapter(inputs, options) if options.adapter_only else _Model(inputs, options)
    with unfinished(output) as folder:
        refuse_small_disk(output, work.loaded, "the export")
        written = work.write(folder)
        began = time.perf_counter()
        report = _report(inputs, work, output, folder, written.bytes)
        if options.check != "none":
            report = replace(report, tensors=work.compare(folder, written.xxh3_128))
        if options.check == "full":
            report = _in_llama_cpp(report, work, folder)
        now = time.perf_counter()
        report = replace(report, seconds=round(now - started, 1), check_seconds=round(now - began, 1))
        report.settle(folder, output)
    return report


def size_of(plan: GgufPlan[Any]) -> int:
    """The bytes of a file."""
    return plan.layout()[0].size


class _Model:
    """The whole model, in one file."""

    def __init__(self, inputs: ExportInputs, options: ExportOptions):
        """Raises MergeError where the rounding that is asked for has nothing to round."""
        self.inputs, self.options = inputs, options
        if inputs.parts.target.adapter is None:
            options.rounding.refuse_without_rounding("a model that has no adapter")
        if options.rounding.calibration is not None:
            refuse_other_tokenizer(options.rounding.calibration, inputs.parts)
        self.plan: GgufPlan[ModelTensors] = Gguf(options.type).plan(
            inputs.weights(torch.float32), inputs.description
        )
        self.rounding: RoundingChoice | None = None
        self.template = translate(inputs.parts.tokenizer) if options.format == "ollama" else None
        self.notes = (*self.plan.notes, *(self.template.notes if self.template is not None else ()))
        self.loaded = size_of(self.plan)
        """Bytes that lie on the disk, and that llama.cpp reads."""
        self.coarser = {name: choice.kind for name, choice in self.plan.tensors.coarser().items()}

    def write(self, folder: Path) -> Written:
        """The file, and the Modelfile beside it where it is for Ollama."""
        if self.template is not None:
            text = modelfile(self.plan.file, self.template, self.inputs.parts.tokenizer)
            (folder / MODELFILE).write_text(text, encoding="utf-8")
        if self.options.type in SIXTEEN_BITS:  # all others are encoded from what is exact
            self._round()
        return self.plan.write(folder, choose_threads())

    def _round(self) -> None:
        options, asked = self.options, self.options.rounding
        if options.type == "f16" and asked == RoundingRequest():
            asked = RoundingRequest("nearest")  # whose steps are an eighth of bfloat16's
        weights, self.rounding = self.inputs.rounded(
            SIXTEEN_BITS[options.type], asked, computes=options.check == "full"
        )
        self.plan = replace(self.plan, tensors=self.plan.tensors.reading(weights))

    def compare(self, folder: Path, hashes: dict[str, str]) -> TensorComparison:
        """What is read back."""
        return compare_tensors(self.plan, self.inputs.weights(torch.float32), folder, hashes)

    @contextmanager
    def files(self, folder: Path) -> Iterator[tuple[Path, Path | None]]:
        """What llama.cpp loads: a model, and an adapter on it."""
        yield folder / self.plan.file, None


class _Adapter:
    """The adapter alone."""

    def __init__(self, inputs: ExportInputs, options: ExportOptions):
        self.inputs, self.options = inputs, options
        self.plan: GgufPlan[LoraTensors] = plan_adapter(inputs, options.type)
        self.notes = self.plan.notes
        self.loaded = size_of(self.plan)
        if options.check == "full" and has_library():
            self.loaded += size_of(plan_base(inputs))
        self.coarser: dict[str, str] = {}
        self.rounding: RoundingChoice | None = None

    def write(self, folder: Path) -> Written:
        """The file."""
        return self.plan.write(folder, choose_threads())

    def compare(self, folder: Path, hashes: dict[str, str]) -> TensorComparison:
        """What is read back."""
        _, failures = read_back(self.plan, folder, hashes)
        return TensorComparison(len(hashes), {}, tuple(failures))

    @contextmanager
    def files(self, folder: Path) -> Iterator[tuple[Path, Path | None]]:
        """The base, written for the check alone, and the adapter."""
        with base_file(self.inputs, folder) as base:
            yield base, folder / self.plan.file


def _report(
    inputs: ExportInputs, work: _Model | _Adapter, output: Path, folder: Path, size: int
) -> ExportReport:
    parts = inputs.parts
    return ExportReport(
        model=parts.target.description,
        base=parts.base.identity["name"],
        adapter=str(parts.target.adapter) if parts.target.adapter is not None else None,
        output=str(output),
        format=work.options.format,
        quantize=work.plan.quantize,
        files=tuple(sorted(path.name for path in folder.iterdir())),
        bytes=size,
        seconds=0.0,
        check_seconds=0.0,
        coarser=work.coarser,
        rounding=work.rounding,
        notes=work.notes,
        tensors=None,
        llama_cpp=None,
        not_run=None,
    )


def _in_llama_cpp(report: ExportReport, work: _Model | _Adapter, folder: Path) -> ExportReport:
    """The report with what llama.cpp makes of the file, or with why it did not run."""
    inputs, exact = work.inputs, work.inputs.weights(torch.float32)
    if not has_library():
        return replace(report, not_run=f'{WHEEL} is not installed (pip install "llama-finetune[gguf]")')
    if not fits_in_memory(exact, beside=work.loaded):
        return replace(report, not_run="the model in float32 and the file are larger than the free memory")
    from finetune.exporting.llama_cpp.check import Exported, check_in_llama_cpp

    said = describe(inputs.description)
    exported = Exported(
        model_of(exact, inputs.config.expected()),
        inputs.parts.tokenizer,
        inputs.parts.documents[0],
        said.context,
        said.pre_tokenizer,
    )
    with work.files(folder) as (model, adapter):
        found = check_in_llama_cpp(model, exported, work.options.type, work.options.max_kl, adapter)
    return replace(report, llama_cpp=found)

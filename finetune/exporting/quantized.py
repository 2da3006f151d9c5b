"""A run or a model to a folder whose linear layers are quantised: written from base and adapter while they
are merged, read back by the format's own library, and asked beside the model in 16 bit."""

import time
from pathlib import Path

import torch

from finetune.errors import ExportError
from finetune.exporters.compressed.exporter import Compressed
from finetune.exporters.compressed.types import QUANTIZATIONS
from finetune.exporters.nf4 import Nf4
from finetune.exporters.quantized.folder import QuantizedFolder, size_of
from finetune.exporters.quantized.weights import QuantizedWeights
from finetune.exporting.inputs import ExportInputs, read_inputs
from finetune.exporting.predictions import check_predictions
from finetune.exporting.report import ExportReport
from finetune.exporting.tensors import TensorComparison, unlike_computed
from finetune.merging.output import refuse_small_disk, unfinished
from finetune.merging.verification.lazy_model import fits_in_memory
from finetune.models.device import choose_threads
from finetune.models.safetensors import StoredWeights, hashes_of
from finetune.runs.target import Target

FOLDERS = ("compressed", "nf4")
"""What --format calls them."""
TOO_LARGE = "the model in float32 is larger than the free memory"


def folder_format(name: str, quantize: str | None, group_size: int | None) -> QuantizedFolder:
    """A format by the options of the command line. Raises ExportError for those that it doesn't have."""
    if name == "nf4":
        if quantize is not None or group_size is not None:
            option = "--quantize" if quantize is not None else "--group-size"
            raise ExportError(f"{option} with --format nf4: it is 4-bit NF4 always. Leave it out.")
        return Nf4()
    if quantize not in QUANTIZATIONS:
        given = "is missing" if quantize is None else f"is {quantize!r}"
        raise ExportError(f"--quantize {given}; expected one of {', '.join(QUANTIZATIONS)}.")
    if group_size is not None and group_size < 1:
        raise ExportError(f"--group-size is {group_size}; expected a whole number from 1.")
    if group_size is not None and not QUANTIZATIONS[quantize].is_integer:
        raise ExportError(
            f"--group-size with --quantize {quantize}, which has one scale a row: leave it out."
        )
    return Compressed(quantize, group_size)


def export_quantized(
    target: Target, output: Path, form: QuantizedFolder, check: str, max_kl: float | None
) -> ExportReport:
    """Write a target as such a folder into `output`, which isn't there.

    Raises ExportError for what the format can't hold, and CheckFailed where a check doesn't hold: the files
    then lie in OUTPUT.failed.
    """
    started = time.perf_counter()
    inputs = read_inputs(target)
    own, exact = inputs.weights(None), inputs.weights(torch.float32)
    plan = form.plan(own, exact, inputs.description)
    is_asked = check == "full" and fits_in_memory(exact)
    if max_kl is not None and not is_asked:
        raise ExportError(f"--max-kl can't be measured: {TOO_LARGE}. Leave it out.")
    with unfinished(output) as folder:
        refuse_small_disk(output, size_of(plan), "the export")
        written = form.write_plan(plan, inputs.description, folder, choose_threads())
        began = time.perf_counter()
        tensors = _read_back(form, plan, inputs, folder, written.xxh3_128) if check != "none" else None
        asked = check_predictions(inputs, folder, form.in_float32, max_kl) if is_asked else None
        now = time.perf_counter()
        report = ExportReport(
            model=inputs.parts.target.description,
            base=inputs.parts.base.identity["name"],
            adapter=str(target.adapter) if target.adapter is not None else None,
            output=str(output),
            format=form.name,
            quantize=form.type if form.type != form.name else None,
            files=tuple(sorted(path.name for path in folder.iterdir())),
            bytes=written.bytes,
            seconds=round(now - started, 1),
            check_seconds=round(now - began, 1),
            coarser={},
            notes=form.notes(),
            tensors=tensors,
            llama_cpp=None,
            not_run=TOO_LARGE if check == "full" and not is_asked else None,
            predictions=asked,
        )
        report.settle(folder, output)
    return report


def _read_back(
    form: QuantizedFolder, plan: QuantizedWeights, inputs: ExportInputs, folder: Path, hashes: dict[str, str]
) -> TensorComparison:
    """What is on the disk: its bytes, what stands beside the weights, and each layer's numbers."""
    stored = StoredWeights.of_folder(folder)
    failures = form.check(inputs.description, folder)
    found = hashes_of(stored, choose_threads())
    failures += unlike_computed(found, hashes)
    worst = 0.0
    for layer in plan.layers:
        deviation = plan.compare(layer, stored)
        worst = max(worst, deviation.error)
        if not deviation.is_nearest:
            failures.append(f"{layer} is read as other numbers than rounding to nearest gives")
    stored.close()
    return TensorComparison(len(found), {form.type: worst}, tuple(failures))

"""A run's adapter by itself, for llama.cpp's --lora on its base's GGUF file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.errors import ExportError
from finetune.exporters.gguf.described import describe
from finetune.exporters.gguf.exporter import FILE, Gguf, GgufPlan
from finetune.exporters.gguf.lora import LoraFactors, LoraTensors, plan_lora
from finetune.exporters.gguf.tensors import ModelTensors
from finetune.exporting.inputs import ExportInputs
from finetune.merging.deltas import LowRank
from finetune.models.architectures.base import LM_HEAD
from finetune.models.device import choose_threads

ELSE = "export without --adapter-only, which merges it"


def plan_adapter(inputs: ExportInputs, quantize: str) -> GgufPlan[LoraTensors]:
    """The file of the adapter alone. Raises ExportError where it changes more than --lora does."""
    parts = inputs.parts
    if not parts.adapters:
        raise ExportError(
            f"--adapter-only: {parts.target.description} has no adapter, it is whole weights: leave it out."
        )
    if parts.stored.mask is not None:
        raise ExportError(
            f"the adapter was trained on a pruned base, whose mask --lora doesn't have: {ELSE}."
        )
    if parts.target.model.rope_scaling is not None:
        raise ExportError(
            "the adapter was trained with other positions than its base's (model.rope_scaling), and --lora "
            f"takes the base's: {ELSE}."
        )
    base, grown = inputs.base_weights(), inputs.updates.vocabulary
    if len(parts.tokenizer) > base.updates.vocabulary or grown > base.updates.vocabulary:
        raise ExportError(f"the adapter brings tokens of its own, which --lora doesn't: {ELSE}.")
    if inputs.updates.stays_tied is not base.updates.stays_tied:
        raise ExportError(
            f"the adapter changes the head of a base that has none of its own ({LM_HEAD}): {ELSE}."
        )
    factors = {name: _factors(inputs, name) for name in inputs.updates.by_name}
    said = describe(inputs.description)
    alpha = float(parts.adapters[0].config["lora_alpha"]) or 1.0  # llama.cpp takes 0 for none
    return plan_lora(
        factors, alpha, said.family, said.shape, quantize=quantize, name=parts.adapters[0].folder.name
    )


def _factors(inputs: ExportInputs, name: str) -> LoraFactors:
    update = inputs.updates.by_name[name]
    if not (update.is_plain_lora and len(update.operations) == 1):
        raise ExportError(
            f"the adapter changes {name} otherwise than by plain LoRA (DoRA, a bias, or as a whole), which "
            f"llama.cpp's --lora doesn't: {ELSE}."
        )
    operation = update.operations[0]
    assert isinstance(operation, LowRank)  # noqa: S101 - which plain LoRA is
    b, a = operation.factors()
    return LoraFactors(b, a, operation.scale)


def plan_base(inputs: ExportInputs) -> GgufPlan[ModelTensors]:
    """The base in float32, with the adapter's tokenizer."""
    return Gguf("f32").plan(inputs.base_weights(), inputs.description)


@contextmanager
def base_file(inputs: ExportInputs, folder: Path) -> Iterator[Path]:
    """That file, in a folder while it is needed."""
    with TemporaryDirectory(dir=folder) as beside:
        plan_base(inputs).write(Path(beside), choose_threads())
        yield Path(beside) / FILE

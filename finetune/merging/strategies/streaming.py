"""A merge that is streamed: block by block from the base's files to the output's, whatever the model's
size."""

import importlib.util
import logging
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finetune.errors import MergeError
from finetune.exporters import Safetensors
from finetune.merging.inputs import MergeInputs, MergeOptions, MergeResult
from finetune.merging.merged_weights import DEAD, MergedWeights, Updates
from finetune.merging.output import refuse_small_disk
from finetune.merging.plan import undo_bytes
from finetune.merging.qlora import DequantizedWeights
from finetune.merging.rounding.choice import choose_rounding
from finetune.merging.verification.description import check_beside
from finetune.merging.verification.left import left_of
from finetune.merging.verification.tensors import check_tensors
from finetune.models.bases.folder import MASK
from finetune.models.device import choose_threads
from finetune.models.mask import hold_mask
from finetune.models.safetensors import Weights
from finetune.models.stored_quantization import INT8, NAMES
from finetune.runs.target import Target

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig

    from finetune.merging.qlora import BaseChoice
    from finetune.merging.verification.heads import HeadVerification
    from finetune.merging.verification.predictions import Verification

logger = logging.getLogger(__name__)

SEED = 0
"""Of the sample of numbers that is recomputed."""


def merge_streamed(
    parts: MergeInputs, updates: Updates, folder: Path, output: Path, options: MergeOptions
) -> MergeResult:
    """Write the merged weights and what stands beside them into `folder`, and check them.

    Raises MergeError where a number isn't finite or the disk of `output` is too small.
    """
    tied = updates.stays_tied if updates.predicts else None
    config = parts.merged_config(vocabulary=updates.vocabulary, tied=tied)
    base, comparison = _choose_qlora_base(parts, updates, config.expected(), options)
    merged = MergedWeights(base, updates, parts.asked_dtype)
    rounding, choice = choose_rounding(
        parts, merged, config.expected(), options.rounding, computes=options.check == "full"
    )
    if choice is not None:
        logger.info(f"rounding: {choice.line()}")
    merged = merged.rounded_by(rounding)
    size = sum(math.prod(merged.shape(name)) * merged.dtype(name).itemsize for name in merged.names())
    # Of drawn numbers more are kept; a disk that has no room for them is found full.
    undo = undo_bytes((merged.shape(name) for name in merged.names() if merged.update(name)), nearest=True)
    refuse_small_disk(output, size + (undo if options.undoable else 0))
    written = Safetensors(options.largest_shard).write(
        merged, parts.description(config), folder, workers=choose_threads()
    )
    if parts.stored.mask is not None:  # what is merged is as pruned as its base
        shutil.copyfile(parts.stored.mask.path, folder / MASK)
    began = time.perf_counter()
    tensors = description = None
    if options.check != "none":
        description = check_beside(parts, folder, config)
        tensors = check_tensors(folder, merged, written.xxh3_128, seed=SEED, workers=choose_threads())
    verification = (
        verify_streamed(parts, merged, folder, config.expected(), options)
        if options.check == "full"
        else None
    )
    notes = quantization_notes(
        parts.target,
        f"{'int8' if base.quantization == INT8 else 'NF4'}, dequantised"
        if isinstance(base, DequantizedWeights)
        else "it is stored",
    )
    if not parts.head.classifies and MergedWeights(base, updates, torch.float32).changes_nothing():
        notes = (DEAD, *notes)
    left = left_of(folder, merged, seed=SEED) if choice is not None else None
    if left is not None and choice is not None:
        notes = (*left.notes(choice.written), *notes)
    return MergeResult(
        written.xxh3_128,
        time.perf_counter() - began,
        tensors,
        verification,
        description,
        comparison,
        choice,
        left,
        notes,
    )


def quantization_notes(target: Target, beneath: str) -> tuple[str, ...]:
    """What is to be said of an adapter that was trained on a quantised base."""
    if target.quantization is None:
        return ()
    how = NAMES.get(target.quantization, target.quantization)
    return (
        f"the adapter was trained on the base in {how}; it is merged into, and verified with, the base as "
        f"{beneath}",
    )


def _choose_qlora_base(
    parts: MergeInputs, updates: Updates, config: "PretrainedConfig", options: MergeOptions
) -> "tuple[Weights, BaseChoice | None]":
    quantization, asked = parts.target.quantization, options.qlora_base
    if quantization is None or not parts.target.quantized:
        if asked not in ("auto", "16bit"):
            raise _trained_on_another(asked, quantization)
        return parts.stored, None
    from finetune.merging.qlora import choice_of, choose_base

    kind = choice_of(quantization)
    if asked not in ("auto", "16bit", kind):
        raise _trained_on_another(asked, quantization)
    if asked == "16bit" and importlib.util.find_spec("bitsandbytes") is None:
        return parts.stored, None  # there is nothing to compare with, and nothing to choose
    name = "int8" if kind == "int8" else "NF4"
    logger.info(f"scoring both bases of the QLoRA adapter: the stored one, and {name} dequantised")
    comparison = choose_base(parts, updates, config, asked=asked, quantization=quantization)
    for line in comparison.lines():
        logger.info(line)
    if comparison.taken == "16bit":
        return parts.stored, comparison
    return DequantizedWeights(parts.stored, quantization), comparison


def _trained_on_another(asked: str, quantization: str | None) -> MergeError:
    return MergeError(
        f"--qlora-base {asked}: this adapter was trained on a base in {quantization or '16 bit'}, not in "
        f"{'NF4' if asked == 'nf4' else asked}."
    )


def verify_streamed(
    parts: MergeInputs, merged: MergedWeights, folder: Path, config: "PretrainedConfig", options: MergeOptions
) -> "Verification | HeadVerification":
    """Base + adapter by peft beside the model in `folder`, in memory where they fit, else layer by layer from
    the disk.

    `config` is what the merged model's configuration has to be; the model in `folder` goes by the one that
    stands there.
    """
    from finetune.merging.verification.lazy_model import fits_in_memory, model_of
    from finetune.merging.verification.predictions import quiet_peft
    from finetune.merging.verification.verifiers import verifier_of

    verifier, exact = verifier_of(parts), None
    wide = MergedWeights(merged.base, merged.updates, torch.float32)
    if fits_in_memory(merged):
        logger.info("verifying: base + adapter beside the merged model, on real rows")
        with quiet_peft():
            before = verifier.before(unmerged(parts, merged))
        exact = before.as_measured_of(model_of(wide, config))
    else:
        logger.info("verifying layer by layer: the model in float32 is larger than the free memory")
        before = verifier.before_from_disk(wide, config)
    return verifier.verify(before, exact, folder, coarsest_type(merged))


def unmerged(parts: MergeInputs, merged: MergedWeights) -> "PeftModel":
    """Base + adapter by peft, in float32. Several adapters go in one on top of the other: the last one stays
    unmerged."""
    from finetune.merging.verification.lazy_model import model_of
    from finetune.merging.verification.predictions import quiet_peft
    from finetune.models.adapters.adapter import load_adapter

    earlier = Updates(parts.stored, parts.config, parts.adapters[:-1])
    beneath = parts.merged_config(vocabulary=earlier.vocabulary, tied=earlier.stays_tied).expected()
    plain = model_of(MergedWeights(merged.base, earlier, torch.float32), beneath)
    if earlier.vocabulary != merged.updates.vocabulary:
        plain.resize_token_embeddings(merged.updates.vocabulary)  # its new rows are the adapter's
    for name in parts.head.brought:
        torch.nn.init.zeros_(plain.get_parameter(name))  # peft has to bring the adapter's by itself
    if parts.stored.mask is not None:
        hold_mask(plain, parts.stored.mask)
    with quiet_peft():
        return load_adapter(plain, parts.adapters[-1].folder).eval()


def coarsest_type(merged: MergedWeights) -> torch.dtype:
    """The type whose rounding counts: the coarsest in which a changed tensor is stored."""
    from finetune.merging.verification.predictions import KL_BOUNDS

    changed = {merged.dtype(name) for name in merged.names() if merged.update(name) is not None} or {
        torch.float32
    }
    return max(changed & set(KL_BOUNDS) or {torch.float32}, key=lambda dtype: torch.finfo(dtype).eps)

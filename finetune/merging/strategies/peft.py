"""What can't be streamed: the whole model in float32, merged by peft itself, and rounded once."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from finetune.errors import MergeError, ModelError, library_refusals
from finetune.exporters import SAFETENSORS
from finetune.generation.loading import load_adapted
from finetune.merging.inputs import MergeInputs, MergeOptions, MergeResult
from finetune.merging.merged_weights import DEAD, are_alike, finite
from finetune.merging.output import refuse_small_disk
from finetune.merging.qlora import DEQUANTIZED
from finetune.merging.rounding.base import ROUNDED_TYPES
from finetune.merging.strategies.streaming import quantization_notes
from finetune.merging.verification.description import check_beside
from finetune.merging.verification.predictions import quiet_peft
from finetune.merging.verification.verifiers import verifier_of
from finetune.models.adapters.adapter import load_adapter
from finetune.models.architectures.base import EMBEDDING, LM_HEAD
from finetune.models.bases.folder import read_adapter_config
from finetune.models.bases.locate import Base
from finetune.models.bases.shapes import stored_name
from finetune.models.description import ModelConfig
from finetune.models.device import choose_threads
from finetune.models.safetensors import StoredWeights, hashes_of
from finetune.recipe.schema.model import ModelSection

logger = logging.getLogger(__name__)


def merge_through_peft(
    parts: MergeInputs, reason: str, folder: Path, output: Path, options: MergeOptions
) -> MergeResult:
    """Merge in memory and write into `folder`. Raises MergeError where base and adapters don't belong
    together."""
    if options.qlora_base in DEQUANTIZED:
        raise MergeError(
            f"--qlora-base {options.qlora_base} can't be honoured: peft itself must merge this adapter "
            f"({reason})."
        )
    if parts.stored.mask is not None:
        raise MergeError(
            f"{parts.base.folder} is pruned, and peft itself must merge this adapter ({reason}): it knows no "
            "mask, and would fill the zeros."
        )
    options.rounding.refuse_beside_peft(reason)
    note = f"merged by peft, the whole model in memory: {reason}"
    if parts.dtype in ROUNDED_TYPES and options.rounding.method == "auto":
        note += "; rounded to the nearest"
    elif parts.dtype not in ROUNDED_TYPES:
        options.rounding.refuse_without_rounding("weights that are stored in float32")
    logger.info(note)
    refuse_small_disk(
        output,
        sum(math.prod(tensor.shape) for tensor in parts.stored.tensors.values()) * parts.dtype.itemsize,
    )
    section = parts.head.in_model(parts.target.model)
    adapted = load_in_float32(
        parts.base, section, [adapter.folder for adapter in parts.adapters], parts.tokenizer
    )
    parts.head.prepare(cast(Any, adapted.get_base_model()).config, parts.config)
    refuse_unmergeable(adapted)
    verifier = before = exact = None
    spent = 0.0
    if options.check == "full":
        began = time.perf_counter()
        verifier = verifier_of(parts)
        before = verifier.before(adapted)
        spent = time.perf_counter() - began
    merged = merge_in_float32(adapted)
    if before is not None:
        exact = before.as_measured_of(merged)
    dead = (DEAD,) if not parts.head.classifies and _changes_nothing(merged, parts.stored) else ()
    drawn = tuple(_rows_of_nobody(merged, parts))
    config = save(merged, parts, folder, options.largest_shard)
    del merged, adapted
    began = time.perf_counter()
    description = verification = None
    if options.check != "none":
        description = check_beside(parts, folder, config)
    if verifier is not None:
        verification = verifier.verify(before, exact, folder, parts.dtype)
    spent += time.perf_counter() - began
    hashes = hashes_of(StoredWeights.of_folder(folder), choose_threads())
    notes = (note, *dead, *drawn, *quantization_notes(parts.target, "it is stored"))
    return MergeResult(hashes, spent, verification=verification, description=description, notes=notes)


def _changes_nothing(merged: PreTrainedModel, base: StoredWeights) -> bool:
    """Whether every weight of the merged model is the base's, but for rounding."""
    for name, weight in merged.named_parameters():
        found = stored_name(base.tensors, name)
        if (
            found is None
            or base.shape(found) != weight.shape
            or not are_alike(weight.detach(), base.whole(found))
        ):
            return False
    return True


def _rows_of_nobody(merged: PreTrainedModel, parts: MergeInputs) -> Iterator[str]:
    """What is to be said of rows of tokens that neither the base nor an adapter holds."""
    plain: Any = merged
    saved = {name for adapter in parts.adapters for name in adapter.weights.names()}
    for module in (EMBEDDING, LM_HEAD):
        found = stored_name(parts.stored.tensors, f"{module}.weight")
        if found is None or f"{module}.weight" not in dict(plain.named_parameters()):
            continue
        known, rows = parts.stored.shape(found)[0], plain.get_submodule(module).weight.shape[0]
        if rows > known and not any(f".{module}." in f".{name}" and "lora_" not in name for name in saved):
            yield f"the rows {known} to {rows - 1} of {module} are in no file: transformers has drawn them"


def load_in_float32(
    base: Base, section: ModelSection, adapters: Sequence[Path], tokenizer: PreTrainedTokenizerFast
) -> PeftModel:
    """Base and adapters, the last one unmerged. Raises MergeError where they don't belong together."""
    model: PreTrainedModel | None = None
    try:
        for adapter in adapters:
            with quiet_peft():
                if model is None:
                    model = load_adapted(
                        base, section, adapter, vocabulary=len(tokenizer), dtype=torch.float32
                    )
                else:
                    assert isinstance(model, PeftModel)  # noqa: S101 - an adapter was loaded before
                    model = load_adapter(merge_in_float32(model), adapter)
    except ModelError as error:
        if "size mismatch" not in str(error.__cause__):  # said by us, or of something else than sizes
            raise
        raise MergeError(
            f"the adapter in {adapter}, of type {read_adapter_config(adapter).get('peft_type')}, does not "
            f"fit the base {base.identity['name']}: {_first_mismatch(str(error.__cause__))[:400]}. It "
            "belongs to another base, or to one with another vocabulary; name the right one with --base."
        ) from error
    assert isinstance(model, PeftModel)  # noqa: S101 - there is at least one adapter
    return model.eval()


def _first_mismatch(text: str) -> str:
    """The first line of torch's list of mismatches, without peft's inner names."""
    line = next(line.strip() for line in text.splitlines() if "size mismatch" in line)
    return line.replace("base_model.model.", "").replace(".default", "").rstrip(".")


def merge_in_float32(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapter's update in it. Raises MergeError where peft can't merge this kind of
    adapter."""
    refuse_unmergeable(model)
    part_shared_weights(model)
    with (
        quiet_peft(),
        library_refusals(f"peft can't merge this adapter of type {kind_of(model)}", MergeError),
    ):
        merged: PreTrainedModel = model.merge_and_unload()
    return merged


def refuse_unmergeable(model: PeftModel) -> None:
    """Raises MergeError for a kind of adapter that adds to what the model reads, and not to its weights."""
    if not hasattr(model.base_model, "merge_and_unload"):
        raise MergeError(
            f"an adapter of type {kind_of(model)} can't be merged into weights: keep it beside its base."
        )


def kind_of(model: PeftModel) -> str:
    """peft's name of the kind of adapter."""
    return str(getattr(model.peft_type, "value", model.peft_type))


def save(merged: PreTrainedModel, parts: MergeInputs, folder: Path, largest_shard: int) -> ModelConfig:
    """Round once, and write, with what stands beside the weights; returns its configuration.

    Raises MergeError where a number isn't finite.
    """
    brought = {name: merged.get_parameter(name).detach() for name in parts.head.brought}
    torch.nn.Module.to(merged, parts.dtype)  # transformers' own `to` only adds checks for quantised models
    for name, weight in brought.items() if parts.asked_dtype is None else ():
        # As a streamed merge keeps it.
        merged.get_parameter(name).data = weight.to(parts.stored.dtype(name))
    for name, parameter in merged.named_parameters():
        finite(name, parameter.detach())
    plain: Any = merged
    config, embedding, tied = plain.config, plain.get_input_embeddings().weight, parts.head.is_tied(plain)
    if tied is not None:
        config.tie_word_embeddings = tied
    # transformers refuses to save some generation configs that it reads; the base's own file is written
    # afterwards.
    merged.generation_config = GenerationConfig()
    merged.save_pretrained(folder, max_shard_size=largest_shard)
    changes = dict[str, Any]()
    if (
        config.num_hidden_layers != parts.trained.num_hidden_layers
    ):  # layers that an adapter has several times over
        changes = _layers(config, parts.adapters[-1].config["layer_replication"])
    described = parts.merged_config(vocabulary=embedding.shape[0], tied=tied, **changes)
    SAFETENSORS.describe(parts.description(described), folder)
    return described


def _layers(config: PretrainedConfig, copies: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What a configuration says of its layers, where they are ranges of the base's, one after the other."""
    kinds = getattr(config, "layer_types", None)
    found = {"num_hidden_layers": config.num_hidden_layers}
    return found | (
        {"layer_types": [kinds[index] for start, end in copies for index in range(start, end)]}
        if kinds
        else {}
    )


def part_shared_weights(model: PeftModel) -> None:
    """Give each module a weight of its own where several share one and an adapter changes it in one of them.

    A merge writes into the weights: an update that is meant for one must not reach the others. Layers share
    theirs with their copies (layer_replication), a tied head with the embedding; rows of tokens are meant for
    both of these where peft ties them.
    """
    plain: Any = model.get_base_model()
    wrappers = [
        module for module in plain.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    beside = {id(weight) for wrapper in wrappers for weight in _own_parameters(wrapper)}
    rows = [wrapper for wrapper in wrappers if isinstance(wrapper, TrainableTokensLayer)]
    of_both = {
        id(layer)
        for wrapper in rows
        if wrapper.tied_adapter is not None
        for layer in (wrapper, wrapper.tied_adapter)
    }
    adapted = {
        id(weight)
        for wrapper in wrappers
        if isinstance(wrapper, BaseTunerLayer) and id(wrapper) not in of_both
        for weight in wrapper.get_base_layer().parameters(recurse=False)
    }
    vocabulary = {
        id(weight)
        for module in (plain.get_input_embeddings(), plain.get_output_embeddings())
        if module is not None
        for weight in module.parameters()
    }
    seen = set[int]()
    for module in list(plain.modules()):
        for leaf, weight in list(module.named_parameters(recurse=False)):
            shared = id(weight) in seen and id(weight) not in beside
            if shared and (id(weight) in adapted or id(weight) not in vocabulary):
                setattr(module, leaf, torch.nn.Parameter(weight.detach().clone(), requires_grad=False))
            seen.add(id(weight))


def _own_parameters(wrapper: BaseTunerLayer | AuxiliaryTrainingWrapper) -> list[torch.nn.Parameter]:
    """What an adapter has in a layer beside the base's weights."""
    holders = [getattr(wrapper, name, None) for name in wrapper.adapter_layer_names]
    return [
        weight for holder in holders if isinstance(holder, torch.nn.Module) for weight in holder.parameters()
    ]

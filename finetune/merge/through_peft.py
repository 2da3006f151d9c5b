"""What can't be streamed: the whole model in float32, merged by peft itself, and rounded once."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from finetune.errors import MergeError, ModelError
from finetune.evaluate.loading import load_adapted
from finetune.merge.adapted import finite
from finetune.merge.heads import SCORE_WEIGHT, config_with_head
from finetune.merge.output import refuse_small_disk
from finetune.merge.parts import Options, Outcome, Parts
from finetune.merge.streamed import quantization_notes
from finetune.merge.tensors import StoredWeights, hashes_of
from finetune.merge.verify import Before, Verification, before_by_peft, quiet_peft, verify
from finetune.merge.verify_heads import HeadBefore, HeadVerification, head_before, verify_head
from finetune.model.adapter import load_adapter
from finetune.model.checkpoint import Base
from finetune.model.config import read_transformers_config
from finetune.model.folder import ADAPTER_WEIGHTS, read_adapter_config, read_header
from finetune.model.precision import choose_threads
from finetune.recipe.schema.model import ModelSection


def merge_through_peft(parts: Parts, reason: str, folder: Path, output: Path, options: Options) -> Outcome:
    """Merge in memory and write into `folder`. Raises MergeError where base and adapters don't belong together."""
    if options.qlora_base == "nf4":
        raise MergeError(f"--qlora-base nf4 can't be honoured: peft itself must merge this adapter ({reason}).")
    note = f"merged by peft, the whole model in memory: {reason}"
    options.say(note)
    refuse_small_disk(output, sum(math.prod(tensor.shape) for tensor in parts.stored.tensors.values()) * parts.dtype.itemsize)
    section = parts.target.model
    if parts.head is not None:
        section = section.model_copy(update={"head": parts.head.section})
    adapted = load_in_float32(parts.base, section, [adapter.folder for adapter in parts.adapters], parts.tokenizer)
    if parts.head is not None:
        cast(Any, adapted.get_base_model()).config.pad_token_id = parts.config["pad_token_id"]
    before, exact, spent = None, None, 0.0
    if options.check == "full":
        began = time.perf_counter()
        before = _before(parts, adapted)
        spent = time.perf_counter() - began
    merged = merge_in_float32(adapted)
    if before is not None:
        exact = before.as_measured_of(merged)
    save(merged, parts, folder, options.largest_shard)
    began = time.perf_counter()
    verification = None
    if before is not None:
        config = merged.config
        del merged, adapted
        verification = _verify(parts, before, exact, folder, config)
    spent += time.perf_counter() - began
    written = StoredWeights.of_folder(folder)
    return Outcome(
        hashes_of(written, choose_threads()),
        spent,
        verification=verification,
        notes=(note, *quantization_notes(parts.target, "it is stored")),
    )


def _before(parts: Parts, adapted: PeftModel) -> Before | HeadBefore:
    documents, _ = parts.documents
    if parts.head is None:
        return before_by_peft(adapted, parts.tokenizer, documents)
    with quiet_peft():
        return head_before(adapted, documents, parts.config["pad_token_id"])


def _verify(
    parts: Parts, before: Before | HeadBefore, exact: Any, folder: Path, config: PretrainedConfig
) -> Verification | HeadVerification:
    _, texts = parts.documents
    if isinstance(before, Before):
        return verify(before, exact, folder, config, parts.tokenizer, texts=texts, dtype=parts.dtype)
    assert parts.head is not None  # noqa: S101 - so it was measured
    config = read_transformers_config(folder)  # the loaded base's says that it predicts tokens
    return verify_head(before, exact, folder, config, parts.head.section, texts=texts, dtype=parts.dtype)


def load_in_float32(
    base: Base, section: ModelSection, adapters: Sequence[Path], tokenizer: PreTrainedTokenizerFast
) -> PeftModel:
    """Base and adapters, the last one unmerged. Raises MergeError where they don't belong together."""
    model: PreTrainedModel | None = None
    try:
        for adapter in adapters:
            with quiet_peft():
                if model is None:
                    model = load_adapted(base, section, adapter, vocabulary=len(tokenizer), dtype=torch.float32)
                else:
                    assert isinstance(model, PeftModel)  # noqa: S101 - an adapter was loaded before
                    model = load_adapter(merge_in_float32(model), adapter)
            _refuse_incomplete(model, adapter, base)
    except ModelError as error:
        if error.__cause__ is None:  # said by us, not by peft or transformers
            raise
        raise MergeError(
            f"the adapter in {adapter}, of type {read_adapter_config(adapter).get('peft_type')}, does not fit the base "
            f"{base.identity['name']}: {_first_mismatch(str(error.__cause__))[:400]}. It belongs to another base, or to "
            "one with another vocabulary; name the right one with --base."
        ) from error
    assert isinstance(model, PeftModel)  # noqa: S101 - there is at least one adapter
    return model.eval()


def _refuse_incomplete(model: PreTrainedModel | PeftModel, adapter: Path, base: Base) -> None:
    """Raises MergeError unless each trained weight of the file found its module, and each module its weight."""
    stored = {_plain(name) for name in read_header(adapter / ADAPTER_WEIGHTS)}
    wanted = {_plain(name) for name in get_peft_model_state_dict(model, save_embedding_layers=False)}
    # An embedding that was saved whole is loaded into the base itself.
    absent = sorted(wanted - stored)
    left_over = sorted(name for name in stored - wanted if "embed_tokens" not in name and "lm_head" not in name)
    kind = read_adapter_config(adapter).get("peft_type")
    for names, what in ((absent, "has no weights for"), (left_over, "has weights beyond the base's modules, such as")):
        if names:
            raise MergeError(
                f"the adapter in {adapter}, of type {kind}, does not fit the base {base.identity['name']}, or its own config: "
                f"it {what} {names[0]} ({len(names)} in all)."
            )


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".weight")


def _first_mismatch(text: str) -> str:
    """The first line of torch's list of mismatches, without peft's inner names."""
    lines = [line.strip() for line in text.splitlines() if "size mismatch" in line] or [text.splitlines()[0]]
    return lines[0].replace("base_model.model.", "").replace(".default", "").rstrip(".")


def merge_in_float32(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapter's update in it. Raises MergeError where peft can't merge this kind of adapter."""
    _untie_if_one_side_is_adapted(model)
    if not hasattr(model.base_model, "merge_and_unload"):
        raise MergeError(f"an adapter of type {model.peft_type} can't be merged into weights: keep it beside its base.")
    try:
        with quiet_peft():
            merged: PreTrainedModel = model.merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise MergeError(f"peft can't merge this adapter: {' '.join(str(error).split())}") from error
    return merged


def save(merged: PreTrainedModel, parts: Parts, folder: Path, largest_shard: int) -> None:
    """Round once, and write. Raises MergeError where a number isn't finite."""
    dtype, head = parts.dtype, merged.get_parameter(SCORE_WEIGHT).detach() if parts.head is not None else None
    torch.nn.Module.to(merged, dtype)  # transformers' own `to` only adds checks for quantised models
    if head is not None and parts.asked_dtype is None:
        # As a streamed merge keeps it.
        merged.get_parameter(SCORE_WEIGHT).data = head.to(parts.stored.dtype(SCORE_WEIGHT))
    for name, parameter in merged.named_parameters():
        finite(name, parameter.detach())
    merged.config.dtype = dtype
    # transformers refuses to save some generation configs that it reads; the base's own file is written afterwards.
    merged.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    merged.save_pretrained(folder, max_shard_size=largest_shard)
    if parts.head is not None:
        path = folder / "config.json"
        config = config_with_head(json.loads(path.read_text()), parts.head, parts.config["pad_token_id"])
        path.write_text(json.dumps(config, indent=2) + "\n")


def _untie_if_one_side_is_adapted(model: PeftModel) -> None:
    """A tied head shares its weight with the embedding: an update meant for one of the two must not reach the other."""
    plain: Any = model.get_base_model()
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    if head is None or not (isinstance(embedding, LoraLayer) or isinstance(head, LoraLayer)):
        return
    inner: Any = head.get_base_layer() if isinstance(head, LoraLayer) else head
    other: Any = embedding.get_base_layer() if isinstance(embedding, LoraLayer) else embedding
    if inner.weight is other.weight:
        inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
        plain.config.tie_word_embeddings = False

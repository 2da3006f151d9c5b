"""Attach, count, save and load adapters. LoRA: Hu et al. 2021, arXiv:2106.09685."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune.engines.base import Engine
from finetune.engines.single import SINGLE
from finetune.errors import ModelError, library_refusals
from finetune.models.adapters.by_peft import KINDS, check_sizes
from finetune.models.adapters.config_file import (
    LORA,
    check_adapter_config,
    checked_adapter_config,
    is_target,
    only_the_adapter,
)
from finetune.models.adapters.fit import (
    refuse_other_task,
    refuse_unknown_keys,
    refuse_unread,
    refuse_wrapped,
    saved_vocabulary,
)
from finetune.models.adapters.masked import mask_updates
from finetune.models.adapters.start import (
    OriginalWeight,
    start_at_lengths,
    start_from_base,
    start_from_residual,
)
from finetune.models.architectures.base import EMBEDDING, LM_HEAD, last_part
from finetune.models.bases.folder import ADAPTER_WEIGHTS, read_adapter_config, read_header
from finetune.models.bases.hub import adapter_snapshot, is_hub_id
from finetune.models.bases.shapes import adapted_layers, with_adapter
from finetune.models.classify import CLASSIFIER
from finetune.recipe.schema.adapter import AdapterSection

logger = logging.getLogger(__name__)

PEFT_INITS = ("gaussian", "orthogonal")
"""Of adapter.init, what peft does by itself."""
LAYER = re.compile(r"\.layers\.(\d+)\.")
T = TypeVar("T")


def attach(
    model: PreTrainedModel,
    section: AdapterSection,
    new_token_ids: Sequence[int] = (),
    *,
    classifies: bool = False,
    original: OriginalWeight | None = None,
    engine: Engine = SINGLE,
) -> PeftModel:
    """The base with a fresh adapter, or with the one that `continue_from` names; only the adapter's weights
    train.

    `new_token_ids` are rows of the embedding (and of an untied head) that are trained and saved with the
    adapter, where those aren't trained as a whole; so is the head of a model that `classifies`. `original`
    reads a weight as it was before it was quantised, which LoftQ needs. Raises ModelError for a target, a
    module to save or a layer that matches nothing, and for a `continue_from` of another shape.
    """
    check_targets(model, section)
    if section.by_peft:
        costs = KINDS[section.method].costs
        logger.info(f"adapter.method {section.method}: its layers are peft's own, and not fused: {costs}")
    if section.continue_from is not None:
        return continue_adapter(model, section, new_token_ids, engine=engine)
    layers = None if section.layers is None else adapted_layers(section, model.config.num_hidden_layers)
    targets: Any = section.target_modules
    if targets != "all-linear" or layers is not None:  # for some of the layers peft wants names
        targets = sorted(linear_names(model)) if targets == "all-linear" else list(targets)
    placed: dict[str, Any] = {
        "task_type": "SEQ_CLS" if classifies else "CAUSAL_LM",
        "target_modules": targets,
        "layers_to_transform": layers,
    }
    if section.exclude_modules:
        placed["exclude_modules"] = list(section.exclude_modules)
    if section.by_peft:
        with library_refusals("adapter: peft refuses this combination"):
            return trained_in_float32(
                get_peft_model(model, KINDS[section.method].config(**placed, **_wanted(section)))
            )
    config = LoraConfig(
        **placed,
        r=section.saved_rank,
        lora_alpha=cast(int, section.saved_alpha),  # peft takes a fraction too
        lora_dropout=section.dropout,
        rank_pattern=_by_peft(section.rank_pattern),
        alpha_pattern=cast(dict[str, int], _by_peft(section.alpha_pattern)),
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        init_lora_weights=cast(Any, section.init if section.init in PEFT_INITS else True),
        modules_to_save=list(section.modules_to_save) or None,
        trainable_token_indices=_token_rows(model, token_rows(section, new_token_ids)),
    )
    with library_refusals("adapter: peft refuses this combination"):
        adapted = get_peft_model(model, config)
    if section.starts_at_base and not section.reads_rows:
        start_from_base(adapted, section)
    elif section.init == "loftq":
        assert original is not None  # noqa: S101 - build.py has the base's files
        start_from_residual(adapted, section, original)
    elif section.use_dora:
        start_at_lengths(adapted)
    mask_updates(adapted)
    return trained_in_float32(adapted)


def _wanted(section: AdapterSection) -> dict[str, Any]:
    """What a recipe asks of its kind of adapter, by peft's names."""
    patterns = {
        "rank_pattern": _by_peft(section.rank_pattern),
        "alpha_pattern": _by_peft(section.alpha_pattern),
    }
    if section.by_peft:
        return KINDS[section.method].values(section) | (patterns if section.method == "loha" else {})
    return patterns | {
        "r": section.rank,
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "use_rslora": section.use_rslora,
        "use_dora": section.use_dora,
    }


def _by_peft(pattern: Mapping[str, T]) -> dict[str, T]:
    """With the regular expressions that peft takes for names."""
    return {name.replace(".", r"\."): value for name, value in pattern.items()}


def token_rows(section: AdapterSection, new_token_ids: Sequence[int]) -> Sequence[int]:
    """The rows that are trained by themselves: none where the embedding is trained as a whole."""
    whole = last_part(EMBEDDING) in map(last_part, section.modules_to_save)
    return () if whole else new_token_ids


def trained_in_float32(model: PeftModel) -> PeftModel:
    """Cast trained weights to float32: optimizer updates can be smaller than bf16 or fp16 can represent.

    peft does so for LoRA's own matrices, and not for modules_to_save.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def _token_rows(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[int]] | None:
    if not ids:
        return None
    one = model.config.tie_word_embeddings or model.get_output_embeddings() is None
    return {name: list(ids) for name in ((last_part(EMBEDDING),) if one else (last_part(EMBEDDING), LM_HEAD))}


def check_targets(model: PreTrainedModel, section: AdapterSection) -> None:
    """Raises ModelError unless each target matches a linear layer or an embedding, and each module to save a
    module."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    targets = () if section.target_modules == "all-linear" else section.target_modules
    for key, wanted in (("target_modules", targets), ("modules_to_save", section.modules_to_save)):
        for target in wanted:
            if not any(is_target(name, target) for name in names):
                held = sorted({name.rsplit(".", 1)[-1] for name in names})
                raise ModelError(
                    f"adapter.{key}: {target!r} matches no module of this base. It has: {', '.join(held)}."
                )
    if section.exclude_modules or section.rank_pattern or section.alpha_pattern or section.by_peft:
        leaves = linear_names(model) if section.target_modules == "all-linear" else targets
        named = {name for name in names if any(is_target(name, leaf) for leaf in leaves)}
        if section.layers is not None:
            layers = adapted_layers(section, model.config.num_hidden_layers)
            named = {name for name in named if {*LAYER.findall(name)} <= {*map(str, layers)}}
        check_sizes(model, section, with_adapter(section, named))


def continue_adapter(
    model: PreTrainedModel,
    section: AdapterSection,
    new_token_ids: Sequence[int] = (),
    *,
    engine: Engine = SINGLE,
) -> PeftModel:
    """The base with an existing adapter, to be trained on. Raises ModelError where its shape isn't the
    recipe's.

    Where the recipe says nothing of dropout and modules to save, the adapter's own are kept.
    """
    folder = continued_folder(section)
    found = checked_adapter_config(folder)
    expected = section.method.upper() if section.by_peft else LORA
    if found["peft_type"] != expected:
        raise ModelError(
            f"adapter.continue_from: {folder} is of type {found['peft_type']}; expected {expected}."
        )
    wanted = _wanted(section)
    wanted = {key: value for key, value in wanted.items() if value or not key.endswith("_dropout")}
    wanted |= {"exclude_modules": list(section.exclude_modules)} if section.exclude_modules else {}
    if section.modules_to_save and set(found["modules_to_save"] or ()) != set(section.modules_to_save):
        wanted["modules_to_save"] = list(section.modules_to_save)
    for key, value in wanted.items():
        held = found.get(key)
        if held != value and (held or value):  # adapters from before peft had patterns have None
            raise ModelError(
                f"adapter.continue_from: {folder} was trained with {key} {held}, the recipe asks for {value}."
            )
    rows = found["trainable_token_indices"]
    tokens = set(rows if isinstance(rows, list) else chain.from_iterable((rows or {}).values()))
    whole = last_part(EMBEDDING) in map(last_part, found["modules_to_save"] or ())
    if tokens != (set() if whole else set(new_token_ids)):
        raise ModelError(
            f"adapter.continue_from: {folder} trains {len(tokens)} new tokens (ids {sorted(tokens)[:5]}), "
            f"and model.new_tokens has {len(new_token_ids)} ({sorted(new_token_ids)[:5]}): name the tokens "
            "that it was trained with, in their order."
        )
    targets = (
        linear_names(model)
        if section.target_modules == "all-linear"
        else {name.rsplit(".", 1)[-1] for name in section.target_modules}
    )
    loaded = load_adapter(model, folder, trainable=True, engine=engine)
    # As peft reads them: names, a regular expression, all-linear, some of the layers.
    names = {name.rsplit(".", 1)[-1] for name in loaded.targeted_module_names}
    if names != targets:
        raise ModelError(
            f"adapter.continue_from: {folder} has targets {sorted(names)}, the recipe {sorted(targets)}."
        )
    if section.layers is not None:
        held = {int(number) for name in loaded.targeted_module_names for number in LAYER.findall(name)}
        asked = adapted_layers(section, model.config.num_hidden_layers)
        if held != set(asked):
            raise ModelError(
                f"adapter.continue_from: {folder} has adapters on layers {sorted(held)}, and the recipe on "
                f"{asked}."
            )
    return trained_in_float32(loaded)


def continued_folder(section: AdapterSection) -> Path:
    """The folder of the adapter that is continued, fetched where it is on the hub. Raises ModelError where it
    can't be had."""
    name = str(section.continue_from)
    if Path(name).is_absolute() or not is_hub_id(name):
        return Path(name)
    return adapter_snapshot(name, named_in="adapter.continue_from")


def linear_names(model: PreTrainedModel) -> set[str]:
    """Names of the linear layers that `all-linear` stands for: all but the head, be it of tokens or of
    labels."""
    head = model.get_output_embeddings() or getattr(model, CLASSIFIER, None)
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def load_adapter(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    *,
    name: str = "default",
    trainable: bool = False,
    engine: Engine = SINGLE,
) -> PeftModel:
    """The base with the adapter in `folder`; a model that has adapters already gets one more, which is then
    the active one. Raises ModelError where the two don't fit together."""
    config = read_adapter_config(folder)
    check_adapter_config(config, [module for module, _ in model.named_modules()], folder)
    refuse_other_task(folder, config, classifies=hasattr(model, CLASSIFIER))
    refuse_unknown_keys(folder, config)
    refuse_wrapped(folder / ADAPTER_WEIGHTS, read_header(folder / ADAPTER_WEIGHTS))
    adapter = f"the adapter in {folder}, of type {config.get('peft_type')}"
    with only_the_adapter(folder) as held:
        grow_embeddings(model, saved_vocabulary(held), engine)
        with library_refusals(f"{adapter}, does not fit this base"):
            empty = bool(
                model.get_input_embeddings().weight.is_meta
            )  # on which torch can put weights, but not write them
            options: Any = {"adapter_name": name, "is_trainable": trainable, "low_cpu_mem_usage": empty}
            if isinstance(model, PeftModel):
                model.load_adapter(str(held), **options)
                model.set_adapter(name)
                loaded = model
            else:
                loaded = PeftModel.from_pretrained(model, str(held), **options)
        refuse_unread(loaded, held, adapter, name)
    mask_updates(loaded)
    if not trainable:  # what trains may be cut up by an engine, and runs soon enough
        with library_refusals(
            f"peft can't run the adapter in {folder}, of type {config.get('peft_type')}, on a text alone"
        ):
            loaded(input_ids=torch.zeros(1, 1, dtype=torch.long, device=loaded.device))
    return loaded


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """The model without its adapter; afterwards the same weights train as before: peft lets all of the
    adapter's train, frozen ones (where it started) too."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with cast(Any, model).disable_adapter():
        yield
    for parameter, trains in before:
        parameter.requires_grad_(trains)


def save_adapter(
    model: PeftModel,
    folder: Path,
    base_name: str,
    revision: str | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter so that plain peft loads it; `base_name` is where peft will look for the base.

    `weights` are the trained ones where the model itself holds a share of them only.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base_name, revision
    for name in ("target_modules", "exclude_modules"):
        if isinstance(found := getattr(config, name, None), set):
            setattr(config, name, sorted(found))  # a set's order is another one in each process
    # The rows of added tokens are in the adapter by themselves; a copy of the whole embedding is not wanted.
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)


def grow_embeddings(model: PreTrainedModel | PeftModel, vocabulary: int, engine: Engine = SINGLE) -> None:
    """Make room for tokens that were added to the tokenizer. An embedding that is padded beyond the
    vocabulary stays."""
    weight: Any = model.get_input_embeddings().weight
    if vocabulary > engine.full_shape(weight)[0]:
        # What transformers draws the new rows from needs numbers, which a model without weights hasn't.
        cast(Any, model).resize_token_embeddings(vocabulary, mean_resizing=not weight.is_meta)


def count_parameters(model: nn.Module, engine: Engine = SINGLE) -> tuple[int, int]:
    """(trainable, all) parameters; NF4 weights, stored several to a number, count by what they stand for,
    shares as wholes."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = engine.full_count(parameter) if state is None else torch.Size(state.shape).numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total

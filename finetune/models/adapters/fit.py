"""What peft passes over in silence when it loads an adapter: keys that it doesn't know, and weights that find
no place."""

import inspect
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ModelError
from finetune.models.architectures.base import EMBEDDING, LM_HEAD, last_part
from finetune.models.bases.folder import ADAPTER_WEIGHTS, read_header
from finetune.recipe.heads import CLASSIFIES

if TYPE_CHECKING:
    from peft import PeftModel

HARMLESS = frozenset(
    {"unsloth_fixed", "merge_weights", "transformers_version", "torch_dtype", "_name_or_path"}
)
"""Keys that other tools write into adapter_config.json, and that say nothing of what the weights mean."""

WRAPPER = re.compile(
    r"_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module|^module(?=\.)"
)
"""What torch.compile, activation checkpointing, FSDP, DeepSpeed and DDP put into the names of weights."""
VOCABULARY = re.compile(
    rf"({last_part(EMBEDDING)}|{LM_HEAD})(\.(token_adapter|base_layer|modules_to_save|original_module))*\.weight$"
)
"""The embedding and the head, saved whole."""
TIED_ROWS = re.compile(rf"{LM_HEAD}\.token_adapter\.trainable_tokens_\w+$")
"""Rows of a tied head, which are the embedding's."""


def refuse_unknown_keys(folder: Path, config: dict[str, Any]) -> None:
    """Raises ModelError where adapter_config.json asks for something that the installed peft would leave
    out."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(config.get("peft_type", ""))
    if kind is None:
        return  # which peft refuses by itself
    known = inspect.signature(kind.__init__).parameters.keys() | HARMLESS
    unknown = sorted(key for key, value in config.items() if value and key not in known)
    if unknown:
        named = ", ".join(f"{key} ({config[key]!r})" for key in unknown)
        saved_by = config.get("peft_version", "of another version")
        raise ModelError(
            f"{folder / 'adapter_config.json'} has {named}, which peft {version('peft')} doesn't know of "
            f"type {config['peft_type']} and would leave out; it was saved by peft {saved_by}. Upgrade peft, "
            "or remove what you know to mean nothing here."
        )


def refuse_other_task(folder: Path, config: dict[str, Any], *, classifies: bool) -> None:
    """Raises ModelError for a classifier's adapter where the model predicts tokens, and the other way round;
    an adapter that says nothing may be either's."""
    task = config.get("task_type")
    if task == CLASSIFIES and not classifies:
        raise ModelError(
            f"the adapter in {folder} is a classifier's or a reward model's (task_type {task}), and this "
            "model predicts tokens: it goes with model.head, or objective.kind: reward."
        )
    if task == "CAUSAL_LM" and classifies:
        raise ModelError(
            f"the adapter in {folder} is of a model that predicts tokens (task_type {task}), and this one "
            "has a classification head: merge it (finetune merge), and take the result as the base."
        )


def saved_vocabulary(folder: Path) -> int:
    """The rows of the embedding or the head that an adapter's file holds whole; 0 where it holds neither."""
    header = read_header(folder / ADAPTER_WEIGHTS)
    return max((tensor["shape"][0] for name, tensor in header.items() if VOCABULARY.search(name)), default=0)


def refuse_unread(model: "PeftModel", folder: Path, adapter: str, name: str = "default") -> None:
    """Raises ModelError unless each weight of the file found its place, and each trained place its weight.

    `adapter` names it in words, `name` in the model.
    """
    from peft import get_peft_model_state_dict

    stored = {_plain(name): name for name in read_header(folder / ADAPTER_WEIGHTS)}
    saved = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    wanted = {_plain(key) for key in saved}
    absent = wanted - stored.keys()
    beyond = {
        name
        for name in stored.keys() - wanted
        if not (VOCABULARY.search(stored[name]) or TIED_ROWS.search(name))
    }
    for odd, what in (
        (absent, "has no weights for"),
        (beyond, "has weights beyond the base's modules, such as"),
    ):
        if odd:
            raise ModelError(
                f"{adapter}, does not fit this base, or its own config: it {what} {min(odd)} ({len(odd)} in "
                "all). Name the right base with --base."
            )


def refuse_wrapped(file: Path, names: Iterable[str]) -> None:
    """Raises ModelError where names carry the word of something that was around the model while it was
    trained."""
    for name in names:
        if (match := WRAPPER.search(name)) is not None:
            raise ModelError(
                f"{file} has {match[0]!r} in the names of its weights ({name}), which another library put "
                "around the model while it was trained: peft reads no such names. Save the adapter again "
                "from the model inside, or take the word out of the names."
            )


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".weight")

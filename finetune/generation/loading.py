"""A base, its adapter and its tokenizer, ready to answer."""

from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.tokenizers.tokens import check_ids
from finetune.data import tokenizer_for
from finetune.errors import ModelError
from finetune.models.adapters.adapter import grow_embeddings, load_adapter
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import ADAPTER_WEIGHTS, MASK
from finetune.models.bases.hashes import remembered_sha256
from finetune.models.bases.locate import Base, BaseNotFound, resolve_base, tokenizer_folder
from finetune.models.bases.written import refuse_changed
from finetune.models.classify import CLASSIFIER
from finetune.models.device import choose_device, generators_kept
from finetune.models.kernels.attention import choose_attention
from finetune.models.load import load_model
from finetune.models.quantization import is_quantized
from finetune.recipe.schema.model import ModelSection


class ModelTarget(Protocol):
    """A base, and the adapter that belongs on it where there is one; finetune.runs.target finds them."""

    @property
    def model(self) -> ModelSection:
        """The base."""

    @property
    def adapter(self) -> Path | None:
        """The adapter's folder."""

    @property
    def quantization(self) -> str | None:
        """How the base was quantised that the adapter was trained on."""

    @property
    def description(self) -> str:
        """Its name, for people."""

    @property
    def base_sha256(self) -> str | None:
        """The fingerprint of the base's folder that the adapter was trained on."""

    @property
    def base_mask(self) -> str | None:
        """The SHA-256 of the mask that the adapter was trained with; None where its base was not pruned."""

    @property
    def named_in(self) -> str:
        """Where the base's name is written."""

    @property
    def preparation(self) -> int:
        """The version of the way from rows to tokens that it was trained with."""

    @property
    def tokenizer(self) -> ModelSection | None:
        """Whose tokenizer belongs to weights that were saved without one."""


def unchanged_base(target: ModelTarget) -> Base:
    """The base of a target, which must be the one that its adapter was trained on, as the adapter must be the
    one that its run wrote.

    Raises ModelError where it can't be found, its content differs from what was trained on, or it is pruned
    by another mask than the adapter was trained with.
    """
    base = _found_base(target)
    expected = target.base_sha256
    if expected is not None and not base.holds(expected):
        raise ModelError(
            f"the base in {base.folder} is not what {target.description} was trained on: its SHA-256 was "
            f"{expected}, and is {base.fingerprint()['sha256']}. Put the base back, or name the one that you "
            "mean with --base."
        )
    if target.adapter is not None:
        refuse_changed(target.adapter)
        refuse_other_mask(base, target.base_mask, target.description)
    return base


def fingerprint_of(target: ModelTarget) -> dict[str, str]:
    """What the weights of a target are: its base's fingerprint, and the SHA-256 of its adapter. Raises
    ModelError as unchanged_base does."""
    own = {} if target.adapter is None else {"adapter": remembered_sha256(target.adapter / ADAPTER_WEIGHTS)}
    return unchanged_base(target).fingerprint() | own


def refuse_other_mask(base: Base, trained: str | None, adapter: str) -> None:
    """Raises ModelError unless an adapter was trained with the mask of its base: `trained` is the SHA-256 of
    that mask, None for an adapter of which nothing says that there was one; `adapter` names it."""
    found = base.mask
    if found == trained:
        return
    if found is None:
        raise ModelError(
            f"{adapter} was trained on a pruned base, its update masked ({MASK}, SHA-256 {trained}), and "
            f"{base.folder} has no {MASK}: name the pruned base with --base."
        )
    how = "without its mask" if trained is None else f"with another mask (SHA-256 {trained})"
    raise ModelError(
        f"{base.folder} is pruned ({MASK}, SHA-256 {found}), and as far as is known {adapter} was trained "
        f"{how}: its update would fill the zeros, or not be the one that was trained. Train it on this base "
        "with finetune train, which masks the update."
    )


def _found_base(target: ModelTarget) -> Base:
    try:
        return resolve_base(target.model, named_in=target.named_in)
    except BaseNotFound as error:
        if target.adapter is None or target.named_in == "--base":
            raise
        raise ModelError(
            f"{error} If the base of {target.description} is elsewhere now, name it with --base."
        ) from None


def load_adapted(
    base: Base,
    model: ModelSection,
    adapter: Path | None,
    *,
    vocabulary: int,
    dtype: torch.dtype,
    quantization: str | None = None,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """The base with its adapter where there is one, in eval mode; embeddings grow to `vocabulary`, the
    tokenizer's size. `attention` is load_model's.

    `quantization` is how the base was quantised that the adapter was trained on.

    Rows of added tokens, and a head, that neither holds are drawn from a fixed seed: loading twice gives the
    same model.
    """
    with generators_kept(choose_device()):
        torch.manual_seed(0)
        loaded = load_model(
            base, dtype=dtype, quantization=quantization, rope_scaling=model.rope_scaling,
            head=model.head, attention=attention,
        )  # fmt: skip
        grow_embeddings(loaded, vocabulary)
    if model.classifies:
        getattr(loaded, CLASSIFIER).float()  # as it was trained, and before the adapter brings its own
    adapted: Any = loaded if adapter is None else load_adapter(loaded, adapter)
    return adapted.eval()


def tokenizer_of(target: ModelTarget, base: Base) -> PreTrainedTokenizerFast:
    """The tokenizer that a target was trained with."""
    whose = target.tokenizer
    folder = base.folder if whose is None else tokenizer_folder(whose)
    return tokenizer_for(whose or target.model, target.adapter, folder, preparation=target.preparation)


def load_ready(
    target: ModelTarget, *, dtype: torch.dtype, quantization: str | None = None, packs: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer on the device, to generate with; a base that its adapter knows unquantised is
    quantised as is said, and with `packs` the model reads packed rows. Raises ModelError or DataError where a
    part can't be loaded."""
    base = unchanged_base(target)
    tokenizer = tokenizer_of(target, base)
    loaded: Any = load_adapted(
        base,
        target.model,
        target.adapter,
        vocabulary=len(tokenizer),
        dtype=dtype,
        quantization=target.quantization or quantization,
        attention=_of_packs(target, base, dtype) if packs else "sdpa",
    )
    check_ids(tokenizer, loaded.get_input_embeddings().weight.shape[0])
    return (loaded if is_quantized(loaded) else loaded.to(choose_device())), tokenizer


def _of_packs(target: ModelTarget, base: Base, dtype: torch.dtype) -> str:
    config = load_config(base, target.model.rope_scaling)
    return choose_attention(choose_device(), dtype, config)

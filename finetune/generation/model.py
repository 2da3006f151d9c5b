"""A model that is asked for answers: without its adapter's wrapper, without dropout, as far as its positions
go."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel

from finetune.errors import FinetuneError


def causal_model(model: PreTrainedModel) -> Any:
    """The model inside a peft model, with its adapter in place; any other model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off while this lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def positions_of(model: PreTrainedModel) -> int:
    """How many tokens a text may have, prompt and answer together."""
    return int(model.config.max_position_embeddings)


def answer_room(model: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens an answer may have. Raises FinetuneError where that is none."""
    positions = positions_of(model)
    if not prompt:
        raise FinetuneError("a prompt is empty: expected at least one token.")
    if len(prompt) >= positions:
        raise FinetuneError(
            f"a prompt has {len(prompt):,} tokens, and this base has {positions:,} positions: shorten it."
        )
    return min(max_new_tokens, positions - len(prompt))

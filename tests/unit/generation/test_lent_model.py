"""A model that answers while it trains is lent: between two tokens it is as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from data_prep.messages import Message
from finetune.generation.generate import conversation_ids, generate_ids, stream
from finetune.models.adapters.adapter import load_adapter
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.models.kernels.install import install_fast_path
from tests.support.oracle import transformers_ids
from tests.unit.generation.answers import enlarged


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [conversation_ids([Message("user", text)], tokenizer) for text in ("Hi", "Two lamps, please.")]


@pytest.fixture
def trained(tiny_base: Path, adapters: dict[str, Path]) -> Any:
    """A model as training has it: with its own attention and fused layers, and dropout on."""
    model: Any = load_adapter(enlarged(tiny_base), adapters["small"], trainable=True)
    model.get_base_model().set_attn_implementation(PER_DOCUMENT)
    assert install_fast_path(model) > 0
    return model.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Those of a packed row of two documents."""
    torch.manual_seed(0)
    tokens = torch.arange(5, 17)[None]
    positions = torch.tensor([[*range(7), *range(5)]])
    model.zero_grad()
    model(input_ids=tokens, position_ids=positions, labels=tokens).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_model_in_training_answers_as_transformers_does(
    trained: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Its fused layers answer without dropout, and without a router: it has one adapter."""
    found = generate_ids(trained, tokenizer, prompts, max_new_tokens=12, batch_size=2)
    assert found == transformers_ids(trained.eval(), tokenizer, prompts, 12)


def test_training_goes_on_as_if_nothing_was_asked(
    trained: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Attention, mode and gradients are what they were, to the bit."""
    before = gradients(trained)
    generate_ids(trained, tokenizer, prompts, max_new_tokens=12, batch_size=2, temperature=1.0)
    assert trained.training
    assert trained.config._attn_implementation == PER_DOCUMENT
    after = gradients(trained)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())


def test_a_model_can_be_used_while_a_stream_waits(
    trained: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Its own attention is there between two pieces, and other prompts are answered."""
    expected = generate_ids(trained, tokenizer, prompts, max_new_tokens=12, batch_size=2)
    pieces = stream(trained, tokenizer, prompts[0], max_new_tokens=12)
    first = next(pieces)
    assert trained.config._attn_implementation == PER_DOCUMENT
    assert generate_ids(trained, tokenizer, prompts, max_new_tokens=12, batch_size=2) == expected
    text = first + "".join(pieces)
    assert text == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_an_error_leaves_the_model_as_it_was(trained: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Also one from inside the model."""
    with pytest.raises(IndexError):
        generate_ids(trained, tokenizer, [[10_000_000]], max_new_tokens=4, batch_size=1)
    assert trained.training
    assert trained.config._attn_implementation == PER_DOCUMENT

"""Loss over supervised tokens."""

import math
import random
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import LlamaForCausalLM

from data_prep.table.documents import Document
from finetune.errors import FinetuneError
from finetune.evaluation.losses import document_losses, token_loss
from finetune.scoring.measured import LossSum


@pytest.fixture
def documents() -> list[Document]:
    """Rows of 2 to 40 tokens, some of their tokens supervised; one has none."""
    draw = random.Random(0)  # noqa: S311 - rows for a test, no secret
    rows = []
    for index in range(11):
        length = draw.randint(2, 40)
        supervised = [False] + [draw.random() < 0.4 for _ in range(length - 1)]
        spans = tuple((place, place + 1, 1.0) for place, learned in enumerate(supervised) if learned)
        rows.append(Document([draw.randrange(3, 300) for _ in range(length)], spans, f"row {index}"))
    return [*rows, Document([5, 6, 7], (), "row without labels")]


def reference(model: LlamaForCausalLM, documents: list[Document]) -> tuple[float, int]:
    """The same sum from all logits, row by row, in float64."""
    total, tokens = 0.0, 0
    for document in documents:
        with torch.no_grad():
            logits = model(torch.tensor([document.token_ids])).logits[0].double()
        chosen = [position for position, supervised in enumerate(document.supervised) if supervised]
        if chosen:
            targets = torch.tensor([document.token_ids[position] for position in chosen])
            total += float(
                functional.cross_entropy(logits[[p - 1 for p in chosen]], targets, reduction="sum")
            )
            tokens += len(chosen)
    return total, tokens


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_loss_is_the_sum_over_supervised_tokens(
    model: LlamaForCausalLM, documents: list[Document], batch_size: int
) -> None:
    """The sum equals that of plain logits row by row, to 1e-5, whatever the batch size."""
    expected, tokens = reference(model, documents)
    found = token_loss(model, documents, batch_size)
    assert found.tokens == tokens
    assert found.loss_sum == pytest.approx(expected, rel=1e-5)
    assert found.mean == pytest.approx(expected / tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected / tokens), rel=1e-4)


def test_the_loss_sees_the_adapter(model: LlamaForCausalLM, documents: list[Document]) -> None:
    """A peft model's loss is that of base and adapter together, and dropout is off while it is measured."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5
    )
    before = token_loss(model, documents, 4)
    adapted = get_peft_model(model, config).train()
    found = token_loss(adapted, documents, 4)
    assert adapted.training
    assert found.loss_sum != pytest.approx(before.loss_sum, rel=1e-3)
    assert found.loss_sum == pytest.approx(reference(adapted.eval(), documents)[0], rel=1e-5)


def test_no_supervised_token_is_an_error(model: LlamaForCausalLM, documents: list[Document]) -> None:
    """A mean over nothing is refused, not 0 and not NaN."""
    with pytest.raises(FinetuneError, match="no supervised token"):
        token_loss(model, documents[-1:], 4)
    with pytest.raises(FinetuneError, match="no supervised token"):
        _ = LossSum(0.0, 0, 0.0).mean


def test_a_hopeless_loss_has_infinite_perplexity() -> None:
    """A perplexity beyond what a float holds is infinite, not an error."""
    assert LossSum(1e6, 1, 1.0).perplexity == math.inf


def test_each_document_has_its_own_loss(model: LlamaForCausalLM, documents: list[Document]) -> None:
    """Batched or alone, a document's loss is the same to 1e-5, and its tokens and weight are its own."""
    together = document_losses(model, documents, 5)
    alone = [document_losses(model, [document], 1)[0] for document in documents]
    assert [loss.tokens for loss in together] == [document.supervised_tokens for document in documents]
    assert [loss.loss_sum for loss in together] == pytest.approx([loss.loss_sum for loss in alone], rel=1e-5)


def test_weights_count(model: LlamaForCausalLM, documents: list[Document]) -> None:
    """A document whose tokens count twice has twice the loss and twice the weight, and the same mean."""
    heavy = [replace(d, spans=tuple((a, b, 2.0) for a, b, _ in d.spans)) for d in documents[:3]]
    once, twice = token_loss(model, documents[:3], 2), token_loss(model, heavy, 2)
    assert twice.loss_sum == pytest.approx(2 * once.loss_sum, rel=1e-6)
    assert (twice.weight, twice.tokens) == (2 * once.weight, once.tokens)
    assert twice.mean == pytest.approx(once.mean, rel=1e-6)

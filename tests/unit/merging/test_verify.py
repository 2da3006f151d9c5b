"""What the verification measures."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.merging.verification.distance import Distance, logits_of
from finetune.merging.verification.predictions import failures_of, load_plain
from finetune.merging.verification.rows import ROWS, TEXTS, TOKENS_A_ROW, verification_documents
from finetune.recipe.schema import Recipe
from tests.support.models import save_tiny_llama


def distance_of(expected: torch.Tensor, found: torch.Tensor) -> Distance:
    measured = Distance()
    measured.add(expected, found)
    return measured


def test_the_distance_is_zero_to_itself_and_kl_otherwise() -> None:
    """Mean KL is sum p log(p / q), in nats, averaged over positions."""
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    assert distance_of(p.log(), p.log()).mean_kl == pytest.approx(0.0, abs=1e-12)
    measured = distance_of(torch.cat([p, p]).log(), torch.cat([q, p]).log())
    assert measured.mean_kl == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2, rel=1e-5)
    assert (measured.same_top1, measured.positions) == (1, 2)
    assert measured.largest == pytest.approx(math.log(2), rel=1e-5)


def test_near_ties_are_not_clear() -> None:
    """A position counts as clear where its likeliest token leads by a tenth of a nat or more."""
    logits = torch.tensor([[1.0, 0.95, 0.0], [1.0, 0.5, 0.0]])
    measured = distance_of(logits, logits.flip(-1))
    assert (measured.clear, measured.same_clear_top1) == (1, 0)


def test_logits_that_are_not_finite_fail() -> None:
    """NaN on either side is a failure, whatever the bounds say about it."""
    good, bad = torch.zeros(2, 3), torch.full((2, 3), math.nan)
    found = list(
        failures_of(
            distance_of(good, good), distance_of(good, good), distance_of(good, bad), 1.0, torch.bfloat16
        )
    )
    assert found == ["logits are not finite"]


def test_each_bound_is_named_when_it_does_not_hold() -> None:
    """Mathematics, predictions and likeliest token each have their own line."""
    logits = torch.eye(4) * 5
    near, far = distance_of(logits, logits), distance_of(logits, logits.flip(-1))
    assert list(failures_of(near, near, near, 5.0, torch.bfloat16)) == []
    lines = list(failures_of(near, far, far, 5.0, torch.bfloat16))
    assert [line.split()[0] for line in lines] == ["merged", "predictions", "the"]


def test_a_folder_that_lacks_a_weight_does_not_load_as_plain(tmp_path: Path) -> None:
    """A weight that transformers would fill in at random is an error that names it."""
    from finetune.errors import MergeError

    save_tiny_llama(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"missing keys.*up_proj"):
        load_plain(tmp_path, torch.float32)


def test_rows_that_go_through_together_have_the_logits_of_each_alone(tiny_base: Path) -> None:
    """Padding changes no row's logits beyond float32's rounding."""
    model = LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    rows = [[5, 6, 7], list(range(3, 40)), [9]]
    for row, together in zip(rows, logits_of(model, rows), strict=True):
        assert together.shape == (len(row), model.config.vocab_size)
        torch.testing.assert_close(together, logits_of(model, [row])[0], rtol=0, atol=1e-5)


def recipe_for(base: Path, rows: Path) -> Recipe:
    return Recipe.model_validate(
        {"model": {"base": str(base)}, "data": {"train": [{"path": str(rows), "format": "alpaca"}]}}
    )


def test_a_run_is_verified_on_its_own_rows(tiny_base: Path, alpaca_file: Path) -> None:
    """The rows are the first of the run's data, cut to a length that a check can afford."""
    documents, texts = verification_documents(recipe_for(tiny_base, alpaca_file), load_tokenizer(tiny_base))
    assert texts == "the run's data"
    assert len(documents) == ROWS
    assert max(len(document.token_ids) for document in documents) <= TOKENS_A_ROW
    assert "Say blue 0 times." in load_tokenizer(tiny_base).decode(documents[0].token_ids)


def test_data_that_is_gone_is_replaced_and_said(tiny_base: Path, tmp_path: Path) -> None:
    """A run whose data can't be read any more is verified on built-in texts, and the report says so."""
    tokenizer = load_tokenizer(tiny_base)
    documents, texts = verification_documents(recipe_for(tiny_base, tmp_path / "gone.json"), tokenizer)
    assert len(documents) == len(TEXTS)
    assert texts.startswith("built-in texts, because the run's data can't be read")
    assert verification_documents(None, tokenizer) == (documents, "built-in texts")

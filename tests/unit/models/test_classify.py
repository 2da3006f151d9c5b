"""A classification head: its loss over packed and padded rows, beside plain transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from data_prep.chat.tokenization import tokenize
from data_prep.config import HeadSection
from data_prep.labels import LabelEncoding
from data_prep.table.documents import Document
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import ModelError
from finetune.evaluation.head_predictions import classify
from finetune.models.bases.locate import resolve_base
from finetune.models.batch import packed_batch, padded_batch
from finetune.models.classify import head_losses
from finetune.models.load import load_model
from finetune.recipe.heads import head_of_config
from finetune.recipe.schema.model import ModelSection
from tests.support.losses import install_head_loss
from tests.unit.models.heads import HEADS, placed_rows


def loaded(folder: Path, head: HeadSection) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    model = load_model(resolve_base(ModelSection(base=str(folder))), dtype=torch.float64, head=head)
    with torch.no_grad():
        model.score.weight.mul_(50)
    install_head_loss(model, head)
    return model.eval()


def documents(folder: Path, head: HeadSection) -> list[Document]:
    from data_prep.chat.tokenization import Tokenization

    made = Tokenization(load_tokenizer(folder), "assistant", encoding=LabelEncoding(head)).run(
        placed_rows(head)
    )
    return [document for document, _ in made]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.problem)
def test_it_reads_where_transformers_reads(tiny_base: Path, head: HeadSection) -> None:
    """Outputs for a batch of documents are those of plain LlamaForSequenceClassification on the prompts, to
    1e-9."""
    model, rows = loaded(tiny_base, head), documents(tiny_base, head)
    plain = LlamaForSequenceClassification(model.config).double().eval()
    plain.load_state_dict(model.state_dict())
    plain.config.pad_token_id = 2
    outputs, _ = classify(model, rows, head, batch_size=2)
    for document, found in zip(rows, outputs, strict=True):
        prompt = document.token_ids[:-1]  # the last token stands in the answer's place
        assert document.spans == ((len(prompt), len(prompt) + 1, 1.0),)
        with torch.no_grad():
            expected = plain(input_ids=torch.tensor([prompt])).logits[0]
        assert found == pytest.approx(expected.numpy(), abs=1e-9)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.problem)
def test_packed_padded_and_plain_losses_agree(tiny_base: Path, head: HeadSection) -> None:
    """The sum over documents is torch's own loss of the outputs; packed and padded rows give it to 1e-10,
    gradients too."""
    model, rows = loaded(tiny_base, head), documents(tiny_base, head)
    outputs, losses = classify(model, rows, head, batch_size=8)
    targets = torch.tensor([document.targets for document in rows], dtype=torch.float64)
    expected = {
        "single_label": lambda x: functional.cross_entropy(x, targets[:, 0].long(), reduction="sum"),
        "multi_label": lambda x: (
            functional.binary_cross_entropy_with_logits(x, targets, reduction="sum") / len(head.labels)
        ),
        "regression": lambda x: functional.mse_loss(x, targets, reduction="sum"),
    }[head.problem](torch.from_numpy(outputs))
    assert sum(loss.loss_sum for loss in losses) == pytest.approx(float(expected), rel=1e-9)
    gradients = []
    for batch in (packed_batch(rows), padded_batch(rows, pad_token_id=2)):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-6
    assert model(**packed_batch(rows), num_items_in_batch=4).loss.item() == pytest.approx(
        float(expected) / 4, rel=1e-6
    )


def test_a_row_without_documents_has_a_zero_with_a_gradient(tiny_base: Path) -> None:
    """So that each process of a run goes through the same backward pass."""
    model = loaded(tiny_base, HEADS[0])
    loss = model(**packed_batch([Document([0, 0], (), "filler")])).loss
    loss.backward()
    assert float(loss) == 0.0
    assert float(model.score.weight.grad.abs().sum()) == 0.0


def test_label_smoothing_is_for_training_alone(tiny_base: Path) -> None:
    """In eval mode the loss is the plain cross-entropy."""
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [0.0]])
    smooth = head_losses(outputs, targets, "single_label", 0.2)
    assert smooth.tolist() != pytest.approx(head_losses(outputs, targets, "single_label").tolist())
    model, rows = loaded(tiny_base, HEADS[0]), documents(tiny_base, HEADS[0])
    before = float(model(**packed_batch(rows)).loss)
    install_head_loss(model, HEADS[0], 0.2)
    assert float(model(**packed_batch(rows)).loss) == pytest.approx(before)
    assert float(model.train()(**packed_batch(rows)).loss) != pytest.approx(before, rel=1e-3)


def test_the_config_says_what_the_head_is(tiny_base: Path, tmp_path: Path) -> None:
    """A saved model loads in plain transformers with its labels, and gives its head back."""
    for head in HEADS:
        folder = tmp_path / head.problem
        loaded(tiny_base, head).save_pretrained(folder)
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        assert list(plain.config.id2label.values()) == list(head.labels or ("value",))
        assert head_of_config(json.loads((folder / "config.json").read_text())) == head
    assert head_of_config(json.loads((tiny_base / "config.json").read_text())) is None


def test_a_base_with_another_head_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Its labels are not given other names, and it isn't taken for a model that predicts tokens."""
    loaded(tiny_base, HEADS[0]).save_pretrained(tmp_path / "classifier")
    base = resolve_base(ModelSection(base=str(tmp_path / "classifier")))
    swapped = HeadSection(labels=("good", "bad"))
    for head in (None, swapped, HEADS[2]):
        with pytest.raises(ModelError, match=r"single_label: bad, good\): name the same in model\.head"):
            load_model(base, dtype=torch.float32, head=head)
    again = load_model(base, dtype=torch.float64, head=HEADS[0])
    np.testing.assert_array_equal(
        again.score.weight.detach(), loaded(tiny_base, HEADS[0]).score.weight.detach()
    )


def test_without_a_head_documents_have_no_targets(tiny_base: Path) -> None:
    """Batches of text hold no targets."""
    rows = tokenize(placed_rows(HEADS[0]), load_tokenizer(tiny_base))
    assert all(row.targets == () for row in rows)
    assert "targets" not in packed_batch(rows)

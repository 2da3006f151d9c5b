"""Packs, mixtures, weights and streams in training: nothing leaks, nothing is lost, and a resumed run is the
same run."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from data_prep.table.documents import Document
from finetune.models.batch import packed_batch, padded_batch
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training import run
from tests.support.losses import install_supervised_loss
from tests.support.messages import hearing
from tests.support.processes import (
    EXACT,
    adapter_of,
    assert_equal,
    launch,
    start,
    trained_weights,
    trainer_of,
    wait_for,
)
from tests.support.recipes import MakeRecipe

PACKED = {"pack_length_tokens": 200, "max_length_tokens": 100}


def document(length: int, seed: int) -> Document:
    ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Document(ids, ((length // 2, length, 1.0),), f"row {seed}")


@pytest.mark.parametrize("attention", ["sdpa", PER_DOCUMENT])
@pytest.mark.parametrize("told", [True, False])
def test_documents_of_a_pack_do_not_see_each_other(tiny_base: Path, attention: str, told: bool) -> None:
    """In fp64, each document's logits in a pack are those that it has alone, to 1e-12, and changing one
    changes no other's.

    Whether the attention is told the lengths of the documents, or only their positions.
    """
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.float64, attn_implementation=attention
    ).eval()
    documents = [document(length, length) for length in (7, 1, 30, 2, 12)]
    inputs = packed_batch(documents)
    inputs.pop("shift_labels")
    if not told or attention != PER_DOCUMENT:
        inputs.pop("documents")
    with torch.no_grad():
        together = model(**inputs, use_cache=False).logits[0]
        alone = [model(input_ids=torch.tensor([one.token_ids])).logits[0] for one in documents]
        other = packed_batch([documents[0], document(1, 99), document(30, 98), *documents[3:]])
        other = {name: value for name, value in other.items() if name in inputs}
        changed = model(**other, use_cache=False).logits[0]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-12)
    kept = torch.tensor([True] * 7 + [False] * 31 + [True] * 14)
    assert torch.allclose(together[kept], changed[kept], rtol=0, atol=1e-12)
    assert not torch.allclose(together[~kept], changed[~kept], atol=1e-3)


def test_a_pack_has_the_loss_and_gradients_of_padded_rows(tiny_base: Path) -> None:
    """In fp64, loss and gradients of documents in one pack equal those of the same documents in padded rows,
    to 1e-12."""
    documents = [document(length, length) for length in (7, 30, 2, 12)]
    results = []
    for batch in (packed_batch(documents), padded_batch(documents, pad_token_id=0)):
        model = AutoModelForCausalLM.from_pretrained(
            tiny_base, dtype=torch.float64, attn_implementation=PER_DOCUMENT
        ).train()
        install_supervised_loss(model)
        loss = model(**batch).loss
        loss.backward()
        results.append(
            (loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        )
    (packed_loss, packed), (padded_loss, padded) = results
    assert packed_loss == pytest.approx(padded_loss, rel=1e-12)
    assert (packed - padded).norm() / padded.norm() < 1e-12


@pytest.mark.parametrize("split", [False, True])
def test_training_on_packs_is_exact_however_they_are_cut(
    make_recipe: MakeRecipe, tmp_path: Path, split: bool
) -> None:
    """In fp64, 4, 2 and 1 packs a micro-batch end in the same adapter after an epoch with a partial last
    step, to 1e-12."""
    results = []
    for micro in (4, 2, 1):
        train = {
            "micro_batch_size": micro, "global_batch_size": 4, "precision": "fp32", "optimizer": "sgd",
            "learning_rate": 0.1,
        }  # fmt: skip
        recipe = make_recipe(train=train, data=PACKED | {"pack_split": split})
        results.append(trained_weights(trainer_of(recipe, tmp_path / str(micro), torch.float64)))
    for other in results[1:]:
        assert (other - results[0]).norm() / results[0].norm() < 1e-12


def test_packed_and_padded_steps_are_the_same_step(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """In fp64, a step over all rows gives the same adapter whether they are packed or padded, to 1e-12."""
    train = {
        "micro_batch_size": 1, "global_batch_size": 64, "precision": "fp32", "optimizer": "sgd",
        "learning_rate": 0.1, "max_steps": 1, "warmup_ratio": 0.0,
    }  # fmt: skip
    packed = trained_weights(
        trainer_of(make_recipe(train=train, data=PACKED), tmp_path / "packed", torch.float64)
    )
    padded = trained_weights(
        trainer_of(
            make_recipe(train=train, data={"max_length_tokens": 100}), tmp_path / "padded", torch.float64
        )
    )
    assert (packed - padded).norm() / padded.norm() < 1e-12


def weighted_recipe(make_recipe: MakeRecipe, tmp_path: Path, **data: Any) -> Recipe:
    """8 conversations of two answers that count 0.25 and 2."""
    path = tmp_path / "weighted.jsonl"
    lines = []
    for number in range(8):
        turns = [
            ("user", f"Say {number}."),
            ("assistant", "lamp " * (number + 1)),
            ("user", "And?"),
            ("assistant", "blue"),
        ]
        messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
        messages[1]["weight"], messages[3]["weight"] = 0.25, 2
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines))
    sources = {"train": [{"path": str(path), "format": "messages"}], "evaluation": None}
    train = {"micro_batch_size": 2, "global_batch_size": 8, "precision": "fp32", "max_steps": 1}
    return make_recipe(train=train, data=sources | data)


@pytest.mark.parametrize("data", [{}, PACKED])
def test_weighted_answers_count_by_their_weight(
    make_recipe: MakeRecipe, tmp_path: Path, data: dict[str, int]
) -> None:
    """The loss of a step is the mean of the token losses weighted by the messages' weights, by plain
    cross-entropy."""
    trainer = trainer_of(weighted_recipe(make_recipe, tmp_path, **data), tmp_path)
    total = weight = 0.0
    for one in trainer.feed.table:
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([one.token_ids])).logits[0, :-1]
        losses = functional.cross_entropy(logits, torch.tensor(one.token_ids[1:]), reduction="none")
        weights = torch.tensor(one.weights[1:])
        assert set(weights.tolist()) == {0, 0.25, 2}
        total += float((losses * weights).sum())
        weight += float(weights.sum())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / weight, rel=1e-5)


STREAMED = {"streaming": {"buffer_rows": 16}, "evaluation": None}


@pytest.mark.long
@pytest.mark.parametrize(
    "data", [PACKED, STREAMED, STREAMED | PACKED], ids=["packs", "stream", "stream of packs"]
)
def test_a_killed_run_resumes_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path, data: dict[str, Any]
) -> None:
    """kill -9 after the checkpoint of step 4 of 30, with dropout: resumed, the adapter is that of the
    uninterrupted run."""
    train = EXACT | {"max_steps": 30}
    options: dict[str, Any] = {"adapter": {"rank": 4, "dropout": 0.1}, "train": train, "data": data}
    whole = start(make_recipe(**options), "whole")
    process = launch(make_recipe(**options))
    folder = RunFolder(tmp_path / "runs" / "killed-001")
    wait_for(folder.checkpoints / "checkpoint-4" / "complete.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said: list[str] = []
    with hearing(said.append):
        run.resume(folder.path, recipe=None)
    assert any(line.startswith("resuming from checkpoint-") for line in said)
    assert_equal(adapter_of(folder), adapter_of(whole))
    for count in ("tokens", "supervised_tokens"):
        assert folder.read_summary()[count] == whole.read_summary()[count] > 0


def test_a_mixture_is_seen_in_its_shares(make_recipe: MakeRecipe, tmp_path: Path, alpaca_file: Path) -> None:
    """Two sources, one of them seen 3 times: the epoch has 40 + 3 x 10 rows, and the log says epochs by the
    mixture."""
    small = tmp_path / "small.json"
    small.write_text(json.dumps(json.loads(alpaca_file.read_text())[:10]))
    sources = [
        {"path": str(alpaca_file), "format": "alpaca"},
        {"path": str(small), "format": "alpaca", "repeat": 3},
    ]
    recipe = make_recipe(data={"train": sources, "evaluation": None}, train={"epochs": 2, "log_every": 1})
    folder = start(recipe)
    assert folder.read_summary()["steps"] == 18  # 70 rows are 9 steps of 8
    entries = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    assert [entry["train/epoch"] for entry in entries] == pytest.approx([step / 9 for step in range(1, 19)])
    assert "small.json: each row 3 times per epoch" in folder.log_path.read_text()

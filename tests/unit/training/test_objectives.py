"""The objective's seam: one that is a single file (docs/extending_objectives.md) trains, resumes and
evaluates like ours."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import finetune
from data_prep.table.documents import Document
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune import objectives
from finetune.data import prepare_data
from finetune.errors import CheckpointError, FinetuneError, RecipeError, TrainingError
from finetune.evaluation.losses import document_losses
from finetune.models.bases.locate import resolve_base
from finetune.models.load import load_model
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.folder import VALUES, RunFolder
from finetune.training import run as training
from finetune.training.callbacks.memory_check import MemoryCheck
from tests.support.manual import example_of, module_of
from tests.support.processes import EXACT, adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        objectives, "OBJECTIVES", (*objectives.OBJECTIVES, module_of("extending_objectives").Pairwise)
    )


@pytest.fixture
def pairs(make_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """make_recipe on 30 pairs of answers of unequal lengths, two of them over-long."""
    rows = [
        {
            "prompt": f"number {index}?",
            "chosen": f"{index} " * (1 + index % 5),
            "rejected": "no " * (1 + index % 3),
        }
        for index in range(28)
    ]
    rows += [
        {"prompt": "long?", "chosen": "yes", "rejected": "no " * 200},
        {"prompt": "long!", "chosen": "a " * 200, "rejected": "b"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "train": [{"path": str(path), "format": "preference"}],
        "evaluation": {"fraction": 0.2},
        "max_length_tokens": 96,
    }

    def make(**sections: dict[str, Any]) -> Recipe:
        changed = {"data": data | {"over_length": "drop"} | sections.pop("data", {})}
        train = EXACT | {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 6, "save_every": 3}
        changed["train"] = train | sections.pop("train", {})
        return make_recipe(objective={"kind": "pairwise", "beta": 0.5}, **changed, **sections)

    return make


def losses(run: RunFolder, name: str = "train/loss") -> list[float]:
    entries = map(json.loads, run.metrics_path.read_text().splitlines())
    return [entry[name] for entry in entries if name in entry]


def test_it_is_one_short_file() -> None:
    """All of it, imports aside, is at most 40 lines."""
    lines = [line for line in example_of("extending_objectives").splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("from ", "import "))]) <= 40


def test_rows_are_pairs(pairs: MakeRecipe, tiny_base: Path) -> None:
    """Both answers of a pair are documents side by side, on one side of the split; where one is too long both
    are dropped."""
    recipe = pairs()
    data = prepare_data(recipe, load_tokenizer(tiny_base))
    assert (len(data.train), len(data.evaluation)) == (2 * 22, 2 * 6)
    for table in (data.train, data.evaluation):
        places = [document.place for document in table]
        assert places[::2] == places[1::2]
        assert len(set(places)) == len(places) // 2
    (source,) = data.report.sources
    assert (source.rows_kept, source.documents, source.dropped["too_long"].count) == (28, 56, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_is_the_formula(pairs: MakeRecipe, tiny_base: Path, packed: bool) -> None:
    """The first loss is ln 2, as reference and policy are one; the evaluation's is that of plain sums of
    log-probabilities."""
    pack = {"data": {"pack_length_tokens": 2 * 96}} if packed else {}
    run = start(pairs(**pack, train={"evaluate_every": 6}))
    assert losses(run)[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    assert losses(run)[-1] != pytest.approx(losses(run)[0], abs=1e-5)
    recipe = pairs(**pack)
    data = prepare_data(recipe, load_tokenizer(tiny_base))
    base = load_model(resolve_base(ModelSection(base=str(tiny_base))), dtype=torch.float32)
    from peft import PeftModel

    before = torch.tensor([-loss.loss_sum for loss in document_losses(base, data.evaluation, 4)])
    tuned: Any = PeftModel.from_pretrained(base, run.adapter)
    after = torch.tensor([-loss.loss_sum for loss in document_losses(tuned, data.evaluation, 4)])
    ratios = (after - before).reshape(-1, 2)
    margins = 0.5 * (ratios[:, 0] - ratios[:, 1])
    expected = -functional.logsigmoid(margins - margins.mean()).mean()
    assert losses(run, "eval/loss")[-1] == pytest.approx(float(expected), abs=1e-5)


def test_how_a_step_is_cut_changes_nothing(pairs: MakeRecipe) -> None:
    """Divisor, and the number that is known before the first loss, are those of the complete step:
    micro-batches of 1, 2, 4."""
    runs = [start(pairs(train={"micro_batch_size": size}), name=f"micro{size}") for size in (1, 2, 4)]
    for other in runs[1:]:
        assert losses(other) == pytest.approx(losses(runs[0]), rel=1e-4)


def test_it_resumes_bit_for_bit(pairs: MakeRecipe) -> None:
    """From a checkpoint, with the numbers that the run computed at its start; without them it is refused."""
    whole = start(pairs(adapter={"rank": 4, "dropout": 0.1}), name="whole")
    half = start(pairs(adapter={"rank": 4, "dropout": 0.1}), name="half")
    for part in (half.adapter, half.checkpoints / "checkpoint-6"):
        shutil.rmtree(part)
    half.write_summary(half.read_summary() | {"status": "stopped"})
    kept = (half.path / VALUES).read_bytes()
    (half.path / VALUES).unlink()
    with pytest.raises(CheckpointError, match="can't be made again from a later step"):
        training.resume(half.path, recipe=None)
    (half.path / VALUES).write_bytes(kept)
    training.resume(half.path, recipe=None)
    assert_equal(adapter_of(whole), adapter_of(half))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.kind=pairwisee"], "did you mean pairwise"),
        (["objective.beta=0"], "got 0, expected more than 0"),
        (["objective.gamma=1"], "unknown key; objective has kind, beta"),
        (["objective.kind=supervised"], "unknown key"),
        (["data.pack_length_tokens=100"], "set at least 192"),
        (["data.over_length=split"], "use drop or truncate_end"),
        (
            ["data.streaming.buffer_rows=10", "train.max_steps=3"],
            "computes numbers of every row before step 1",
        ),
        (["train.label_smoothing=0.1"], "objective pairwise has no such loss"),
        (["evaluate.metrics=[exact_match]"], "doesn't fit objective pairwise"),
        (["model.head.problem=regression"], "learns from a model that predicts tokens"),
    ],
)
def test_what_does_not_fit_is_refused(
    pairs: MakeRecipe, tmp_path: Path, overrides: list[str], message: str
) -> None:
    """By the objective's own section and rules, each at its key."""
    from ruamel.yaml import YAML

    path = tmp_path / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(pairs().model_dump(mode="json", exclude_defaults=True), file)
    load_recipe(path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert message in str(caught.value)


def test_memory_is_tried_with_complete_rows(pairs: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the heaviest batch doesn't fit, smaller ones are tried by whole pairs, then by shorter ones."""
    seen = []

    def too_large(self: MemoryCheck, documents: list[Document]) -> bool:
        seen.append([len(document.token_ids) for document in documents])
        return fits(self, documents) and len(seen) > 3

    fits = MemoryCheck._fits
    monkeypatch.setattr(MemoryCheck, "_fits", too_large)
    with pytest.raises(TrainingError, match=r"1/8 of it does. Set data.max_length_tokens: 24 \(it is 96\)"):
        start(pairs(train={"micro_batch_size": 2}))
    assert [len(lengths) for lengths in seen] == [4, 2, 2, 2]
    assert seen[2] == [length // 2 for length in seen[1]]


def test_an_evaluation_of_some_rows_takes_both_answers(pairs: MakeRecipe) -> None:
    """evaluate.max_rows counts pairs."""
    run = start(pairs(evaluate={"max_rows": 3}, train={"evaluate_every": 6}))
    assert losses(run, "eval/loss")[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)


def test_it_is_not_scored_as_text(pairs: MakeRecipe) -> None:
    """The likelihood of both answers of a pair is no loss of it."""
    recipe = pairs(train={"max_steps": 1, "save_every": None})
    with pytest.raises(FinetuneError, match="objective pairwise has no metrics"):
        finetune.evaluate(start(recipe).path)


def test_other_rows_are_refused(pairs: MakeRecipe, alpaca_file: Path, tiny_base: Path) -> None:
    """In the objective's words."""
    recipe = pairs(data={"train": [{"path": str(alpaca_file), "format": "alpaca"}]})
    with pytest.raises(Exception, match="40 of its rows are no pairs of answers"):
        prepare_data(recipe, load_tokenizer(tiny_base))

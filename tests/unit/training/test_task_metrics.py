"""Metrics in training and of its result, the checkpoint that they choose, and classification heads from
recipe to run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.data import prepare_data
from finetune.errors import FinetuneError
from finetune.evaluation.dataset import longest_label, read_rows
from finetune.evaluation.evaluation import Evaluation
from finetune.models.bases.shapes import count_trainable, read_shape
from finetune.models.device import choose_precision
from finetune.recipe.lock import read_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.train import EarlyStopping, TrainSection
from finetune.runs.folder import RunFolder
from finetune.runs.target import base_of, resolve_target
from finetune.training.callbacks.best_checkpoint import BestCheckpoint
from finetune.training.callbacks.task_metrics import TaskMetrics
from finetune.training.outputs import write_metrics
from tests.support.processes import EXACT, adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe

COLOURS = ("red", "green", "blue")
SECTIONS: dict[str, dict[str, Any]] = {
    "evaluate": {
        "metrics": ["accuracy", "likelihood_accuracy", "chrf"],
        "labels": list(COLOURS),
        "max_new_tokens": 6,
    },
    "train": EXACT | {"evaluate_every": 4},
}


@pytest.fixture
def colours(make_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """make_recipe on rows whose answer is a colour that the text names."""
    rows = [
        {"text": f"{colour} {index} {colour}", "label": colour} for index in range(14) for colour in COLOURS
    ]
    path = tmp_path / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": [{"path": str(path), "format": "classification"}], "evaluation": {"fraction": 0.25}}

    def make(**sections: dict[str, Any]) -> Recipe:
        return make_recipe(
            **{"data": data | {"max_length_tokens": 64} | sections.pop("data", {}), **sections}
        )

    return make


def entries(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def test_metrics_are_measured_in_training_and_of_the_result(colours: MakeRecipe) -> None:
    """On the first rows with each evaluation loss, on all rows of the result; predictions, summary, lock and
    log have them."""
    evaluate = SECTIONS["evaluate"] | {"rows_in_training": 4}
    run = start(colours(**SECTIONS | {"evaluate": evaluate}))
    logged = [entry for entry in entries(run) if "eval/loss" in entry]
    assert [entry["step"] for entry in logged] == [0, 4, 8, 12]
    assert all({"eval/accuracy", "eval/likelihood_accuracy", "eval/chrf"} <= entry.keys() for entry in logged)
    final = entries(run)[-1]
    assert final["final/likelihood_accuracy"] > 0.4  # of three colours
    summary, lock = run.read_summary(), read_lock(run.lock_path)
    assert (
        summary["final/likelihood_accuracy"]
        == final["final/likelihood_accuracy"]
        == lock.final["final/likelihood_accuracy"]
    )
    assert summary["metrics"]["likelihood_accuracy"]["rows"] == 10
    predictions = [json.loads(line) for line in (run.predictions / "final.jsonl").read_text().splitlines()]
    assert len(predictions) == 10
    assert all(
        set(row["log_likelihoods"]) == set(COLOURS) and row["references"][0] in COLOURS for row in predictions
    )


def test_metrics_change_nothing_that_is_learned(colours: MakeRecipe) -> None:
    """A run with metrics in training is bit for bit the one without, dropout included; its eval losses are
    the same."""
    adapter = {"adapter": {"rank": 4, "dropout": 0.1}}
    plain = start(colours(**adapter, train=SECTIONS["train"]))
    measured = start(
        colours(**adapter, **SECTIONS | {"evaluate": SECTIONS["evaluate"] | {"rows_in_training": 3}})
    )
    assert_equal(adapter_of(plain), adapter_of(measured))
    losses = [
        [entry["eval/loss"] for entry in entries(run) if "eval/loss" in entry] for run in (plain, measured)
    ]
    assert losses[0] == losses[1]


def test_evaluate_finds_what_the_run_measured(colours: MakeRecipe) -> None:
    """`finetune evaluate` on the run gives the run's own figures; against its base the pairs' difference has
    an interval."""
    recipe = colours(**SECTIONS)
    run = start(recipe)
    evaluation = Evaluation(recipe, choose_precision("fp32"))
    target = resolve_target(str(run.path))
    tuned, base = evaluation.of(target), evaluation.of(base_of(target))
    assert {
        f"final/{name}": value for name, value in tuned.values.items()
    }.items() <= run.read_summary().items()
    assert tuned.values["chrf"] > base.values["chrf"]


@pytest.mark.parametrize("best_by", ["likelihood_accuracy", "loss"])
def test_the_best_checkpoint_by_any_metric_is_the_result(colours: MakeRecipe, best_by: str) -> None:
    """The adapter is that of the checkpoint with the best value, and no other."""
    # Far too fast at the end: the last step is not the best.
    train = SECTIONS["train"] | {
        "best_by": best_by,
        "learning_rate": 0.3,
        "schedule": "constant",
        "max_steps": 12,
    }
    evaluate = SECTIONS["evaluate"] | {"rows_in_training": 10}
    run = start(colours(train=train, evaluate=evaluate))
    values = {
        entry["step"]: entry[f"eval/{best_by}"]
        for entry in entries(run)
        if f"eval/{best_by}" in entry and entry["step"]
    }
    best = (min if best_by == "loss" else max)(values.values())
    step = next(step for step, value in values.items() if value == best)
    assert run.read_summary()["best_step"] == step
    saved = RunFolder(run.path)
    saved.adapter = run.checkpoints / f"checkpoint-{step}"
    assert_equal(adapter_of(run), adapter_of(saved))
    assert run.read_summary()[f"final/{'likelihood_accuracy'}"] == pytest.approx(
        next(
            entry["eval/likelihood_accuracy"]
            for entry in entries(run)
            if entry["step"] == step and "eval/loss" in entry
        )
    )


HEADS: dict[str, dict[str, Any]] = {
    "single_label": {"labels": list(COLOURS)},
    "multi_label": {"problem": "multi_label", "labels": list(COLOURS)},
    "regression": {"problem": "regression"},
}


def head_recipe(
    colours: MakeRecipe, tiny_base: Path, tmp_path: Path, problem: str, **sections: Any
) -> Recipe:
    """A recipe whose head can learn its rows."""
    rows: list[dict[str, Any]] = []
    for index in range(42):
        colour = COLOURS[index % 3]
        answers = {
            "single_label": {"label": colour},
            "multi_label": {"label": [colour, "red"] if colour != "red" else []},
            "regression": {"value": index % 3 - 0.5},
        }
        rows.append({"text": f"{colour} {index} {colour}"} | answers[problem])
    path = tmp_path / f"{problem}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"regression": ["loss", "mean_squared_error"], "multi_label": ["loss", "accuracy", "f1_macro"]}
    own: dict[str, dict[str, Any]] = {
        "model": {"base": str(tiny_base), "head": HEADS[problem]},
        "data": {
            "train": [
                {"path": str(path), "format": "regression" if problem == "regression" else "classification"}
            ]
        },
        "train": EXACT | {"max_steps": 40, "evaluate_every": 20, "learning_rate": 5e-3},
        "evaluate": {"metrics": metrics.get(problem, ["loss", "accuracy"])},
    }
    own["data"] |= {"pack_length_tokens": 64}
    return colours(**{name: own.get(name, {}) | sections.get(name, {}) for name in own | sections})


@pytest.mark.parametrize("problem", HEADS)
def test_a_head_learns(colours: MakeRecipe, tiny_base: Path, tmp_path: Path, problem: str) -> None:
    """Packed rows, a LoRA and a head: the held-out loss falls, the run is scored by its metrics, and plain
    peft loads it."""
    recipe = head_recipe(colours, tiny_base, tmp_path, problem)
    run = start(recipe)
    summary = run.read_summary()
    assert summary["evaluation_loss"] < 0.7 * summary["evaluation_loss_before"]
    assert summary["final/loss"] == pytest.approx(summary["evaluation_loss"], rel=1e-5)
    if problem == "regression":
        assert summary["final/mean_squared_error"] == pytest.approx(summary["final/loss"], rel=1e-6)
    else:
        assert summary["final/accuracy"] > 0.6
    shape = read_shape(json.loads((tiny_base / "config.json").read_text()))
    outputs = recipe.model.head.outputs  # type: ignore[union-attr]
    assert summary["trainable_parameters"] == count_trainable(shape, recipe.adapter, 0, outputs)
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    weights = adapter_of(run)
    (score,) = (weight for name, weight in weights.items() if name.endswith("score.weight"))
    assert score.shape[0] == outputs
    report = Evaluation(recipe, choose_precision("fp32")).of(resolve_target(str(run.path)))
    assert {f"final/{name}": value for name, value in report.values.items()} == pytest.approx(
        {name: value for name, value in summary.items() if name.startswith("final/")}, rel=1e-4
    )


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_head_with_other_methods(colours: MakeRecipe, tiny_base: Path, tmp_path: Path, method: str) -> None:
    """On an NF4 base the head stays as it is and is trained; with full it is trained with all weights."""
    run = start(
        head_recipe(
            colours,
            tiny_base,
            tmp_path,
            "single_label",
            adapter={"method": method, "rank": 4} if method == "qlora" else {"method": method, "rank": 16},
        )
    )
    summary = run.read_summary()
    assert summary["evaluation_loss"] < summary["evaluation_loss_before"]
    found = resolve_target(str(run.path))
    recipe = read_lock(run.lock_path).recipe
    report = Evaluation(recipe, choose_precision("fp32")).of(found)
    assert report.values["accuracy"] == pytest.approx(summary["final/accuracy"])


def test_a_head_learns_the_same_however_batches_are_cut(
    colours: MakeRecipe, tiny_base: Path, tmp_path: Path
) -> None:
    """Micro-batches of one and of four packs end in the same adapter: the loss is a mean over documents."""
    results = []
    for micro in (4, 1):
        recipe = head_recipe(
            colours,
            tiny_base,
            tmp_path,
            "multi_label",
            train={"micro_batch_size": micro, "optimizer": "sgd", "learning_rate": 0.1},
        )
        results.append(
            torch.cat([weight.flatten() for _, weight in sorted(adapter_of(start(recipe)).items())])
        )
    assert float((results[0] - results[1]).norm() / results[0].norm()) < 1e-5


def test_rows_that_a_head_cannot_learn_are_named(colours: MakeRecipe, tiny_base: Path) -> None:
    """A label that the head doesn't name ends the preparation with its row."""
    from data_prep.errors import DataError

    recipe = colours(model={"base": str(tiny_base), "head": {"labels": ["red", "green"]}})
    with pytest.raises(
        DataError, match=r"colours\.jsonl:3: the label is 'blue', which is not in model\.head\.labels"
    ):
        start(recipe)


def test_other_heads_are_not_evaluated(colours: MakeRecipe, tiny_base: Path, tmp_path: Path) -> None:
    """A run with a head is not scored by a recipe without, nor with other labels."""
    recipe = head_recipe(colours, tiny_base, tmp_path, "single_label", train=EXACT | {"max_steps": 1})
    run = start(recipe)
    swapped = recipe.model_copy(update={"model": recipe.model.model_copy(update={"head": None})})
    with pytest.raises(
        FinetuneError,
        match=r"a head of problem single_label with the labels red, green, blue, and the recipe no",
    ):
        Evaluation(swapped, choose_precision("fp32")).of(resolve_target(str(run.path)))


def test_labels_that_no_training_row_has_are_said(colours: MakeRecipe, tmp_path: Path) -> None:
    """They count as any other, and a note says how many rows have them."""
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(
        "".join(
            json.dumps({"text": f"x {n}", "label": label}) + "\n" for n, label in enumerate(["red", "white"])
        )
    )
    sources = {"sources": [{"path": str(held_out), "format": "classification"}]}
    evaluate = {"metrics": ["accuracy"], "labels": [*COLOURS, "white"], "max_new_tokens": 2}
    run = start(colours(train=EXACT | {"max_steps": 1}, data={"evaluation": sources}, evaluate=evaluate))
    assert "label 'white' occurs in 1 evaluation rows but in no training row" in run.read_summary()["notes"]


def test_a_metric_that_is_no_number_is_never_the_best() -> None:
    """NaN saves no checkpoint and improves nothing; the numbers after it are compared among themselves."""
    keep = BestCheckpoint(
        TrainSection(best_by="pearson", early_stopping=EarlyStopping(patience_evaluations=2)), 2
    )
    saved, state = [], TrainerState(log_history=[])
    for step, value in enumerate([float("nan"), 0.2, 0.9, 0.5, float("nan")], start=1):
        state.log_history.append({"step": step, "eval_pearson": value})
        control = keep.on_evaluate(None, state, TrainerControl(), {})  # type: ignore[arg-type]
        saved.append(control.should_save)
    assert saved == [False, True, True, False, True]  # the last one because the training is stopped there
    assert keep.says_stop(state)


def test_metrics_that_fail_leave_a_finished_run(colours: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is there: a warning says what could not be measured."""

    def fail(self: TaskMetrics) -> None:
        raise FinetuneError("no figure")

    monkeypatch.setattr(TaskMetrics, "at_end", fail)
    run = start(colours(**SECTIONS))
    assert run.read_summary()["status"] == "finished"
    assert run.adapter.is_dir()
    assert "WARNING the metrics could not be measured: no figure" in run.log_path.read_text()


def test_rows_that_do_not_fit_are_refused_before_training(colours: MakeRecipe, tmp_path: Path) -> None:
    """A held-out label that evaluate.labels doesn't name, and matthews for rows with several."""
    with pytest.raises(
        FinetuneError, match=r"colours\.jsonl:\d+ has the label 'blue', and the labels are red, green"
    ):
        start(colours(train=EXACT, evaluate={"metrics": ["accuracy"], "labels": ["red", "green"]}))
    rows = [{"text": f"x {n}", "label": ["red", "green"][: n % 3]} for n in range(12)]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": [{"path": str(tmp_path / "lists.jsonl"), "format": "classification"}]}
    for name in ("matthews", "likelihood_accuracy"):
        with pytest.raises(FinetuneError, match=f"the metric {name} needs one label a row"):
            start(colours(train=EXACT, data=data, evaluate={"metrics": [name], "labels": ["red", "green"]}))
    assert not list((tmp_path / "runs").glob("*"))


def test_the_result_is_measured_once_in_the_log(colours: MakeRecipe) -> None:
    """Measured again, as after a kill at the end, it replaces what was written before."""
    run = start(colours(**SECTIONS))
    before = entries(run)
    report = Evaluation(read_lock(run.lock_path).recipe, choose_precision("fp32")).of(
        resolve_target(str(run.path))
    )
    write_metrics(run, report, 12)
    assert [entry.keys() for entry in entries(run)] == [entry.keys() for entry in before]


def test_prompts_without_room_are_left_out(colours: MakeRecipe, tiny_base: Path) -> None:
    """With a note; where no prompt has room it is refused."""
    recipe = colours(**SECTIONS)
    tokenizer = load_tokenizer(tiny_base)
    data = prepare_data(recipe, tokenizer)
    lengths = sorted(
        len(question.prompt_ids) for question in read_rows(recipe, data, tokenizer, positions=256).questions
    )
    room = longest_label(COLOURS, tokenizer)
    rows = read_rows(recipe, data, tokenizer, positions=lengths[0] + room)
    assert len(rows.questions) == lengths.count(lengths[0])
    assert (
        rows.notes[0]
        == f"{len(lengths) - len(rows.questions)} rows are left out: their prompts leave no position to answer"
    )
    with pytest.raises(FinetuneError, match="leaves no position to answer"):
        read_rows(recipe, data, tokenizer, positions=lengths[0] + room - 1)

"""Runs on pairs of answers: they learn, are measured, and are refused where they can't be what they say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import finetune
from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.data import prepare_data
from finetune.errors import FinetuneError, RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.rules.objective import with_objective_defaults
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe


def write_pairs(path: Path, rows: int = 24) -> str:
    """Pairs whose chosen answer repeats the prompt's number; the two are the longer one in turn."""
    lines = []
    for index in range(rows):
        right, wrong = f"it is {index}", f"not {index + 7}"
        if index % 2:
            right += ", " + right
        else:
            wrong += " " + wrong
        lines.append(json.dumps({"prompt": f"number {index}?", "chosen": right, "rejected": wrong}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def pairs(make_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """make_recipe on 24 pairs, six of them held out, for 8 steps."""
    data = {
        "train": [{"path": write_pairs(tmp_path / "pairs.jsonl"), "format": "preference"}],
        "evaluation": {"fraction": 0.25},
        "max_length_tokens": 96,
    }
    train = EXACT | {"global_batch_size": 6, "micro_batch_size": 3, "max_steps": 8, "save_every": None}

    def make(**sections: dict[str, Any]) -> Recipe:
        changed = sections | {
            "data": data | sections.get("data", {}),
            "train": train | {"evaluate_every": 8} | sections.get("train", {}),
        }
        return with_objective_defaults(make_recipe(**{"objective": {"kind": "dpo"}, **changed}))

    return make


def logged(run: RunFolder) -> list[dict[str, float]]:
    return list(map(json.loads, run.metrics_path.read_text().splitlines()))


def column(run: RunFolder, name: str) -> list[float]:
    return [entry[name] for entry in logged(run) if name in entry]


@pytest.mark.parametrize(
    ("section", "first"),
    [
        ({"kind": "dpo"}, math.log(2)),
        ({"kind": "ipo", "beta": 0.2, "length_normalized": True}, (1 / 0.4) ** 2),
        pytest.param({"kind": "hinge"}, 1.0, marks=pytest.mark.long),
        pytest.param({"kind": "robust"}, math.log(2), marks=pytest.mark.long),
        ({"kind": "orpo"}, None),
        pytest.param({"kind": "simpo"}, None, marks=pytest.mark.long),
        pytest.param({"kind": "cpo"}, None, marks=pytest.mark.long),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_it_learns(pairs: MakeRecipe, section: dict[str, Any], first: float | None) -> None:
    """Packed, from a loss that is known where start and reference are one, to a lower one and wider
    margins."""
    run = start(pairs(objective=section, data={"pack_length_tokens": 256}))
    losses, margins = column(run, "train/loss"), column(run, "train/reward_margin")
    if first is not None:
        assert losses[0] == pytest.approx(first, abs=1e-5)
        assert column(run, "eval/reward_accuracy")[0] == 0.5
        assert column(run, "train/reward_accuracy")[-1] == 1.0
    assert losses[-1] < losses[0]
    assert margins[-1] > margins[0]


def test_how_a_step_is_cut_changes_nothing_that_is_logged(pairs: MakeRecipe) -> None:
    """Means are over the pairs of the step, whatever its micro-batches, padded or packed."""
    sections = [
        {"train": {"micro_batch_size": 1}},
        {"train": {"micro_batch_size": 6}},
        {"train": {"micro_batch_size": 2}, "data": {"pack_length_tokens": 192}},
    ]
    objective = {"kind": "dpo", "supervised_weight": 0.5}
    runs = [
        start(pairs(objective=objective, **changes), name=f"cut{n}") for n, changes in enumerate(sections)
    ]
    names = [name for name in logged(runs[0])[1] if "reward" in name or "log_" in name or "losses" in name]
    assert len(names) == 10
    for other in runs[1:2]:
        for name in [*names, "train/loss"]:
            assert column(other, name) == pytest.approx(column(runs[0], name), rel=1e-3, abs=1e-4)
    # Packs of several pairs make other steps; the evaluation's rows are the same ones.
    for name in ("eval/loss", "eval/log_probabilities/chosen"):
        assert column(runs[2], name)[0] == pytest.approx(column(runs[0], name)[0], rel=1e-5)


def test_the_run_is_scored_as_it_was_in_training(pairs: MakeRecipe) -> None:
    """finetune evaluate computes the reference with the adapter switched off; a merge has none."""
    run = start(pairs())
    report = finetune.evaluate(run.path)
    for name in ("reward_accuracy", "reward_margin"):
        assert report.scores[name].value == pytest.approx(column(run, f"eval/{name}")[-1], rel=1e-3)
        assert report.scores[name].rows == 6
    merged = run.path / "merged"
    finetune.merge(run.path, merged, verify="none")
    with pytest.raises(FinetuneError, match="evaluate the run or its adapter, not a merged model"):
        finetune.evaluate(merged, run.path / "recipe.lock.yaml")


def test_a_merge_is_scored_without_a_reference(pairs: MakeRecipe) -> None:
    """Rewards of SimPO are the model's own."""
    run = start(pairs(objective={"kind": "simpo"}))
    merged = run.path / "merged"
    finetune.merge(run.path, merged, verify="none")
    scores = [
        finetune.evaluate(run.path).scores,
        finetune.evaluate(merged, run.path / "recipe.lock.yaml").scores,
    ]
    margins = [one["reward_margin"].value for one in scores]
    assert margins[1] == pytest.approx(margins[0], rel=1e-3)


def test_the_best_checkpoint_may_be_the_one_that_ranks_best(pairs: MakeRecipe) -> None:
    """best_by names what the trainer measures at every evaluation by itself."""
    section = {"best_by": "reward_accuracy", "evaluate_every": 2, "save_every": 2, "max_steps": 4}
    run = start(pairs(train=section))
    found = column(run, "eval/reward_accuracy")
    assert run.read_summary()["best_step"] == 2 * (1 + found[1:].index(max(found[1:])))


def test_rows_are_counted_as_pairs(pairs: MakeRecipe, tiny_base: Path, tmp_path: Path) -> None:
    """And how their lengths compare, with a warning where one kind of answer is nearly always the longer
    one."""
    lines = prepare_data(pairs(), load_tokenizer(tiny_base)).report.lines()
    assert lines[-1] == "18 rows to train on, 6 to evaluate on"
    assert any("24 pairs: the chosen answer has more tokens in 50%" in line for line in lines)
    assert not any("warning" in line for line in lines)
    rows = [{"prompt": f"{n}?", "chosen": f"{n} " * 9, "rejected": "no"} for n in range(24)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = pairs(data={"train": [{"path": str(tmp_path / "long.jsonl"), "format": "preference"}]})
    lines = prepare_data(other, load_tokenizer(tiny_base)).report.lines()
    assert any("warning: the longer answer is nearly always the chosen one" in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.beta=0"], "expected more than 0"),
        (["objective.label_smoothing=0.5"], "less than 0.5"),
        (["objective.reference=other"], "expected start or none"),
        (["objective.margin=1"], "unknown key; objective has"),
        (["objective.kind=dpoo"], "did you mean dpo"),
        (["data.supervise=all"], "compares answers, without their prompts"),
        (["data.loss_weights.assistant=2"], "weighs an answer's tokens alike"),
        (["data.over_length=split"], "use drop or truncate_end"),
        (["train.label_smoothing=0.1"], "objective dpo has no such loss"),
        (["evaluate.metrics=[exact_match]"], "which has reward_accuracy, reward_margin"),
        (["data.streaming.buffer_rows=10"], "computes numbers of every row before step 1"),
        (["model.head.problem=regression"], "learns from a model that predicts tokens"),
        (["train.best_by=reward_accuracy", "train.evaluate_every=null"], "needs train.evaluate_every"),
    ],
)
def test_what_does_not_fit_is_refused(
    pairs: MakeRecipe, tmp_path: Path, overrides: list[str], message: str
) -> None:
    """At its key."""
    from ruamel.yaml import YAML

    path = tmp_path / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(pairs().model_dump(mode="json", exclude_defaults=True), file)
    load_recipe(path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert message in str(caught.value)


def test_the_lock_has_the_keys_that_were_not_written(pairs: MakeRecipe, tmp_path: Path) -> None:
    """So that a later version with other defaults reads the run as it was."""
    from ruamel.yaml import YAML

    path = tmp_path / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(
            pairs().model_dump(mode="json", exclude_defaults=True) | {"objective": {"kind": "dpo"}}, file
        )
    options = load_recipe(path).recipe.objective.options
    assert (options["beta"], options["reference"], options["label_smoothing"]) == (0.1, "start", 0.0)


def test_a_stream_of_pairs_trains_without_a_reference(pairs: MakeRecipe) -> None:
    """Nothing is computed of the rows before step 1."""
    recipe = pairs(
        objective={"kind": "orpo"},
        data={"streaming": {"buffer_rows": 8}, "evaluation": None},
        train={"max_steps": 2, "evaluate_every": None},
    )
    run = start(recipe)
    assert len(column(run, "train/reward_accuracy")) == 2


def test_a_pair_that_is_not_in_the_rows_is_refused(
    pairs: MakeRecipe, alpaca_file: Path, tiny_base: Path
) -> None:
    """Rows with one answer are not pairs."""
    recipe = pairs(data={"train": [{"path": str(alpaca_file), "format": "alpaca"}]})
    with pytest.raises(DataError, match="40 of its rows are no pairs of answers, which are compared here"):
        prepare_data(recipe, load_tokenizer(tiny_base))

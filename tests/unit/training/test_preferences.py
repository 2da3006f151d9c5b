"""Runs on pairs of answers: they learn, are measured, and are refused where they can't be what they say."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from data_prep.errors import DataError
from data_prep.feedback import Mismatched
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.data import prepare_data
from finetune.errors import FinetuneError, ModelError, RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.paths import LOCK
from finetune.recipe.schema import Recipe
from finetune.training import run as training
from tests.support.preferences import column, logged
from tests.support.processes import adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe


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


def write_feedback(path: Path, rows: int = 24) -> str:
    """Answers to numbers, every other one a bad one."""
    lines = []
    for index in range(rows):
        answer = f"it is {index}" if index % 2 else f"not {index + 7}"
        lines.append(
            json.dumps({"prompt": f"number {index}?", "completion": answer, "label": bool(index % 2)})
        )
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def feedback(pairs: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """The same on 24 answers with a judgement each."""
    source = {"path": write_feedback(tmp_path / "feedback.jsonl"), "format": "feedback"}

    def make(**sections: dict[str, Any]) -> Recipe:
        data = {"train": [source]} | sections.pop("data", {})
        return pairs(**{"objective": {"kind": "kto"}, "data": data, **sections})

    return make


def test_judged_answers_are_learned(feedback: MakeRecipe) -> None:
    """KTO starts at one half (every answer on the baseline, 0), and brings good and bad ones to their sides."""
    run = start(feedback(train={"max_steps": 16, "evaluate_every": 16}))
    assert column(run, "train/loss")[0] == pytest.approx(0.5, abs=1e-5)
    assert column(run, "train/baseline")[0] == 0.0
    assert column(run, "train/loss")[-1] < 0.48
    assert column(run, "train/rewards/good")[-1] > column(run, "train/rewards/bad")[-1]
    assert column(run, "eval/reward_accuracy")[-1] == 1.0


def test_evaluating_judged_answers_compares_good_with_bad_ones(feedback: MakeRecipe) -> None:
    """Of all pairs of a good and a bad answer; before step 1 all are ties, and the merge has no reference."""
    run = start(
        feedback(
            train={"max_steps": 16, "evaluate_every": 16},
            evaluate={"metrics": ["reward_auc"], "rows_in_training": 6},
        )
    )
    assert column(run, "eval/reward_auc")[0] == 0.5
    [score] = finetune.evaluate(run.path).scores.values()
    assert (score.name, score.value) == ("reward_auc", 1.0)
    assert score.rows == len(score.places) == 6
    finetune.merge(run.path, run.path / "merged", verify="none")
    with pytest.raises(FinetuneError, match="evaluate the run or its adapter, not a merged model"):
        finetune.evaluate(run.path / "merged", run.path / "recipe.lock.yaml")


def test_the_baseline_is_the_steps_whatever_its_micro_batches(feedback: MakeRecipe) -> None:
    """Loss and baseline of every step are those of micro-batches of another size."""
    runs = [start(feedback(train={"micro_batch_size": size}), name=f"micro{size}") for size in (1, 6)]
    for name in ("train/loss", "train/baseline", "eval/loss", "eval/baseline"):
        assert column(runs[1], name) == pytest.approx(column(runs[0], name), rel=1e-3, abs=1e-4)
    assert max(column(runs[0], "train/baseline")) > 0


def test_kto_resumes_with_its_other_answers(feedback: MakeRecipe) -> None:
    """Whose numbers are kept with the run: the second half is bit for bit the whole run's."""
    recipe = feedback(train={"save_every": 4, "evaluate_every": None})
    whole, half = start(recipe, name="whole"), start(recipe, name="half")
    for part in (half.adapter, half.checkpoints / "checkpoint-8"):
        shutil.rmtree(part)
    half.write_summary(half.read_summary() | {"status": "stopped"})
    training.resume(half.path, recipe=None)
    assert_equal(adapter_of(whole), adapter_of(half))


def test_pairs_are_a_good_and_a_bad_answer(pairs: MakeRecipe, tiny_base: Path) -> None:
    """KTO on rows of format preference."""
    data = prepare_data(pairs(objective={"kind": "kto"}), load_tokenizer(tiny_base))
    assert [document.targets for document in data.train[:4]] == [(1.0,), (0.0,)] * 2
    assert len(data.train) + len(data.evaluation) == 48
    assert any("24 of 48 answers are good ones" in line for line in data.report.lines())


def test_prompts_get_another_rows_answer(feedback: MakeRecipe, tiny_base: Path) -> None:
    """Each answer once, after another row's prompt; cut where both are longer than a document may be."""
    recipe = feedback()
    table = prepare_data(recipe, load_tokenizer(tiny_base)).train
    others = Mismatched(table, 0, 96)
    used = [tuple(other.token_ids[other.spans[0][0] :]) for other in others]
    assert sorted(used) == sorted(tuple(own.token_ids[own.spans[0][0] :]) for own in table)
    for own, other in zip(table, others, strict=True):
        start_of_answer = own.spans[0][0]
        assert own.token_ids[:start_of_answer] == other.token_ids[:start_of_answer]
        assert own.token_ids != other.token_ids
        assert other.spans[0][0] == start_of_answer
    assert all(len(other.token_ids) == 26 for other in Mismatched(table, 0, 26))
    assert [other.token_ids for other in Mismatched(table, 1, 96)] != [other.token_ids for other in others]


def test_answers_of_one_judgement_are_refused(feedback: MakeRecipe, tiny_base: Path, tmp_path: Path) -> None:
    """What tells good from bad can't be learned from good ones alone."""
    rows = [{"prompt": f"{n}?", "completion": f"{n}", "label": True} for n in range(8)]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = feedback(data={"train": [{"path": str(tmp_path / "good.jsonl"), "format": "feedback"}]})
    with pytest.raises(DataError, match="all 8 answers to train on are good ones"):
        prepare_data(recipe, load_tokenizer(tiny_base))


def test_bad_answers_are_never_learned_as_answers(feedback: MakeRecipe, tiny_base: Path) -> None:
    """Supervised fine-tuning refuses judged rows."""
    with pytest.raises(DataError, match=r"24 of its rows are pairs .*, answers that were judged"):
        prepare_data(feedback(objective={"kind": "supervised"}), load_tokenizer(tiny_base))


def test_a_reward_model_is_a_plain_sequence_classifier(pairs: MakeRecipe) -> None:
    """It ranks pairs, is scored as in training, and merged gives the same rewards in plain transformers, of
    the text that the chat template writes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    recipe = pairs(objective={"kind": "reward", "centering": 0.01}, train={"max_steps": 16})
    assert recipe.model.head is not None
    run = start(recipe)
    assert column(run, "train/loss")[-1] < column(run, "train/loss")[0]
    assert column(run, "train/reward_accuracy")[-1] == 1.0
    report = finetune.evaluate(run.path)
    last = column(run, "eval/reward_margin")[-1]
    assert report.scores["reward_margin"].value == pytest.approx(last, rel=1e-3)

    merged = run.path / "merged"
    assert finetune.merge(run.path, merged).verification.holds
    model: Any = AutoModelForSequenceClassification.from_pretrained(merged, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert model.config.num_labels == 1
    margins = []
    for _, example in prepare_data(recipe, tokenizer).evaluation_rows:
        messages = [{"role": message.role, "content": message.content} for message in example.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        margins.append(float(model(input_ids=ids).logits[0, 0]))
    mean = sum(margins[::2]) - sum(margins[1::2])
    assert mean / 6 == pytest.approx(last, rel=1e-3)
    # It predicts no tokens, and neither does its adapter.
    with pytest.raises(ModelError, match="is a model with a classification head"):
        start(pairs(model={"base": str(merged)}), name="other")
    for changes in (
        {"adapter": {"continue_from": str(run.adapter)}},
        {"objective": {"kind": "dpo", "reference": str(run.adapter)}},
    ):
        with pytest.raises(ModelError, match="is a classifier's or a reward model's"):
            start(pairs(**changes), name="other")
    first = start(pairs(train={"max_steps": 1, "evaluate_every": None}), name="first")
    with pytest.raises(ModelError, match="is of a model that predicts tokens"):
        start(
            pairs(objective={"kind": "reward"}, adapter={"continue_from": str(first.adapter)}), name="other"
        )


def test_metrics_in_training_keep_pairs_together(pairs: MakeRecipe) -> None:
    """Some rows are some pairs."""
    evaluate = {"metrics": ["reward_margin"], "rows_in_training": 2}
    run = start(pairs(evaluate=evaluate, train={"max_steps": 2, "evaluate_every": 2}))
    assert len(column(run, "eval/reward_margin")) == 2


def test_both_answers_of_a_pair_are_cut_alike(pairs: MakeRecipe, tiny_base: Path, tmp_path: Path) -> None:
    """With truncate_start they still have one prompt."""
    rows = [{"prompt": "long " * 40, "chosen": "yes " * (n + 1), "rejected": "no"} for n in range(8)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(tmp_path / "long.jsonl"), "format": "preference"}
    recipe = pairs(data={"train": [source], "over_length": "truncate_start", "max_length_tokens": 64})
    table = prepare_data(recipe, load_tokenizer(tiny_base)).train
    for chosen, rejected in zip(table[::2], table[1::2], strict=True):
        assert max(len(chosen.token_ids), len(rejected.token_ids)) == 64
        prompts = [own.token_ids[: own.spans[0][0]] for own in (chosen, rejected)]
        assert prompts[0] == prompts[1]


def test_answers_that_are_equal_as_tokens_are_left_out(
    pairs: MakeRecipe, tiny_base: Path, tmp_path: Path
) -> None:
    """The template leaves out what differs, or the cut does; counted, whatever learns from pairs."""
    rows: list[dict[str, Any]] = [{"prompt": "q", "chosen": f"yes {n}", "rejected": "no"} for n in range(3)]
    long = "so " * 200
    rows.append({"prompt": "q", "chosen": f"{long}good", "rejected": f"{long}bad"})
    thought = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    rows.append({"prompt": "q", "chosen": [thought], "rejected": "a"})
    (tmp_path / "equal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(tmp_path / "equal.jsonl"), "format": "preference"}
    data = {"train": [source], "over_length": "truncate_end", "reasoning": "drop", "evaluation": {"rows": 2}}
    for kind in ("dpo", "kto"):
        found = prepare_data(pairs(objective={"kind": kind}, data=data), load_tokenizer(tiny_base))
        dropped = found.report.sources[0].dropped
        assert {reason: counts.count for reason, counts in dropped.items()} == {"equal_answers": 2}, kind


@pytest.mark.parametrize("form", ["preference", "feedback"])
def test_a_weight_of_a_judged_turn_is_refused(
    pairs: MakeRecipe, tiny_base: Path, tmp_path: Path, form: str
) -> None:
    """It would make another number of the answer's probability."""
    answer = [{"role": "assistant", "content": "yes", "weight": 0.5}]
    row = {"prompt": "q", "chosen": answer, "rejected": "no"}
    if form == "feedback":
        row = {"prompt": "q", "completion": answer, "label": True}
    (tmp_path / "weighted.jsonl").write_text(json.dumps(row) + "\n")
    source = {"path": str(tmp_path / "weighted.jsonl"), "format": form}
    recipe = pairs(objective={"kind": "kto"}, data={"train": [source]})
    with pytest.raises(DataError, match=r"weighted.jsonl:1: the assistant's turn 'yes' has weight 0.5"):
        prepare_data(recipe, load_tokenizer(tiny_base))


def test_an_answer_with_the_other_judgement_is_no_duplicate(
    feedback: MakeRecipe, tiny_base: Path, tmp_path: Path
) -> None:
    """Two people may differ on it."""
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (True, False, True)]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(tmp_path / "twice.jsonl"), "format": "feedback"}
    data = {"train": [source], "evaluation": None, "clean": {"duplicates": "drop"}}
    recipe = feedback(data=data, train={"evaluate_every": None})
    report = prepare_data(recipe, load_tokenizer(tiny_base)).report.sources[0]
    assert report.dropped["duplicate"].places == ["twice.jsonl:3"]


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
        (["objective.reference=other"], "other; expected start, base, none, or one"),
        (
            ["objective.reference=whole"],
            "has no adapter: it trained all weights, or isn't finished; expected",
        ),
        (["objective.margin=1"], "unknown key; objective has"),
        (["objective.kind=dpoo"], "did you mean dpo"),
        (["objective.kind=sppo_hard"], "the nearest is ipo"),
        (["data.supervise=all"], "compares answers, without their prompts"),
        (["data.loss_weights.assistant=2"], "weighs an answer's tokens alike"),
        (["data.over_length=split"], "use drop or truncate_end"),
        (["train.label_smoothing=0.1"], "objective dpo has no such loss"),
        (["evaluate.metrics=[exact_match]"], "which has reward_accuracy, reward_margin"),
        (["data.streaming.buffer_rows=10"], "computes numbers of every row before step 1"),
        (
            ["objective={kind: reward}", "model.head={problem: multi_label, labels: [a]}"],
            "brings its own head",
        ),
        (["model.head.problem=regression"], "learns from a model that predicts tokens"),
        (["train.best_by=reward_accuracy", "train.evaluate_every=null"], "needs train.evaluate_every"),
    ],
)
def test_what_does_not_fit_is_refused(
    pairs: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    """At its key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / LOCK).touch()  # a run of all weights
    assert message in refused(pairs(), tmp_path / "recipe.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.global_batch_size=1", "train.micro_batch_size=1"],
            "compares the rows of a step; set at least 2",
        ),
        (["objective.good_weight=0"], "expected more than 0"),
        (["data.loss_weights.assistant=2"], "weighs an answer's tokens alike"),
        (["data.supervise=all"], "learns the answer that was judged"),
    ],
)
def test_what_does_not_fit_kto_is_refused(
    feedback: MakeRecipe, tmp_path: Path, overrides: list[str], message: str
) -> None:
    """At its key."""
    assert message in refused(feedback(), tmp_path / "recipe.yaml", overrides)


def test_a_reward_model_has_no_choice_of_what_is_learned(pairs: MakeRecipe, tmp_path: Path) -> None:
    """A reward is read behind the whole conversation."""
    recipe = pairs(objective={"kind": "reward"})  # with the head that it brings, which a user doesn't write
    plain = recipe.model_copy(update={"model": recipe.model.model_copy(update={"head": None})})
    found = refused(plain, tmp_path / "recipe.yaml", ["data.supervise=last"])
    assert "data.supervise  a reward is read behind the whole conversation; remove this" in found


def refused(recipe: Recipe, path: Path, overrides: list[str]) -> str:
    """What is said of the recipe with these overrides; without them it is a good one."""
    from ruamel.yaml import YAML

    with path.open("w") as file:
        YAML().dump(recipe.model_dump(mode="json", exclude_defaults=True), file)
    load_recipe(path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


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

"""Answers that a model draws itself, rewarded and learned from."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import DataError
from finetune.errors import CheckpointError, FinetuneError, ModelError, RecipeError
from finetune.evaluation.text_scores import rewards_of_answers
from finetune.generation.loading import load_ready
from finetune.objectives.reward import HEAD
from finetune.recipe.load import load_recipe
from finetune.recipe.lock import read_lock
from finetune.recipe.rules.objective import with_objective_defaults
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.runs.target import resolve_target
from finetune.training import build
from finetune.training import run as training
from finetune.training.batches import Batching
from finetune.training.inputs import Inputs, build_inputs
from finetune.training.prompts import PromptFeed
from tests.support.grpo import OBJECTIVE, TRAIN, Asking, first_step
from tests.support.messages import hearing, sending
from tests.support.preferences import column, write_pairs
from tests.support.processes import adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import found


def apart(one: RunFolder, other: RunFolder) -> float:
    """The largest difference of two adapters' weights."""
    mine, its = adapter_of(one), adapter_of(other)
    return max(float((mine[name] - its[name]).abs().max()) for name in mine)


def test_rewards_rise(asking: Asking) -> None:
    """Of the answers in training and of those to held-out prompts; the evaluation loss is minus the reward."""
    run = start(asking(train={"max_steps": 16, "evaluate_every": "16 steps"}))
    rewards = column(run, "train/reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5
    before, after = column(run, "eval/reward")
    assert after > before + 0.5
    assert column(run, "eval/loss") == [-before, -after]
    parts = [column(run, f"train/rewards/{name}") for name in ("digits", "short")]
    assert [sum(pair) for pair in zip(*parts, strict=True)] == pytest.approx(rewards)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_trainer_sees_the_sampler_s_probabilities(asking: Asking, temperature: float) -> None:
    """In fp32 each drawn token's log-probability is within 1e-4 of the sampler's, and 1e-5 in the mean; also
    when the adapter has learned, and where top_p left tokens out."""
    changed = OBJECTIVE | {"temperature": temperature, "top_p": 0.9}
    trainer = trainer_of(asking(objective=changed), Path("unused"))
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    trainer.model_wrapped = trainer.model
    batches = first_step(trainer)
    drifts = [
        (found[:, 0] - batches[index]["position_values"][:, 0]).abs()
        for (index,), found in trainer.computed("values", [([i], batch) for i, batch in enumerate(batches)])
    ]
    drift = torch.cat(drifts)
    assert float(drift.max()) <= 1e-4
    assert float(drift.mean()) <= 1e-5


def test_a_row_is_asked_its_own_prompt(asking: Asking) -> None:
    """Which row a micro-batch names is the row whose prompt is answered, and whose answer is compared with."""
    feed = trainer_of(asking(), Path("unused")).feed
    assert isinstance(feed, PromptFeed)
    for question, document in zip(feed.questions, feed.table, strict=True):
        prompt = list(question.prompt_ids)
        assert document.token_ids[: len(prompt)] == prompt
        assert question.place == document.place
    (epoch,) = [sorted(row for batch, _ in zip(feed, range(6), strict=False) for row in batch["rows"])]
    assert epoch == list(range(12))


def test_rows_of_a_step_with_one_prompt_have_answers_of_their_own(asking: Asking, tmp_path: Path) -> None:
    """However the step is cut: the second row's are not the first row's once more."""
    rows = [{"prompt": "number?", "completion": f"it is {index}"} for index in range(8)]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": [{"path": str(tmp_path / "same.jsonl"), "format": "prompt_completion"}]}
    drawn = []
    for size in (1, 4):
        trainer = trainer_of(asking(data=data, train={"micro_batch_size": size}), Path("unused"))
        first_step(trainer)
        groups = [group for groups in trainer.rollouts.micro_batches for group in groups]
        drawn.append([[tuple(one.token_ids) for one in group] for group in groups])
    assert len({answer for group in drawn[0] for answer in group}) == 4 * 6
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "loss", ["dapo", *(pytest.param(loss, marks=pytest.mark.long) for loss in ("grpo", "dr_grpo", "gspo"))]
)
def test_how_a_step_is_cut_changes_nothing(asking: Asking, loss: str) -> None:
    """A micro-batch of all prompts, and one each: the same weights."""
    objective = OBJECTIVE | {"loss": loss, "kl_weight": 0.1}
    train = {"optimizer": "sgd", "learning_rate": 0.05, "max_steps": 3}
    whole = start(asking(objective=objective, train=train | {"micro_batch_size": 4}))
    cut = start(asking(objective=objective, train=train | {"micro_batch_size": 1}))
    assert apart(whole, cut) < 1e-5
    assert column(whole, "train/loss") == pytest.approx(column(cut, "train/loss"), abs=1e-5)


def test_a_prompt_that_is_computed_once_changes_nothing(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trunk with branches, and rows by themselves: the same weights."""
    train = {"optimizer": "sgd", "learning_rate": 0.05, "max_steps": 3}
    shared = start(asking(train=train))
    own = build.build_feed

    def apart_rows(recipe: Recipe, inputs: Inputs) -> Any:
        feed = own(recipe, inputs)
        assert feed.batching.shares_prompts
        feed.batching = Batching(**vars(feed.batching) | {"shares_prompts": False})
        return feed

    monkeypatch.setattr(build, "build_feed", apart_rows)
    separate = start(asking(train=train))
    assert apart(shared, separate) < 1e-5


@pytest.mark.parametrize("passes", [1, 3])
def test_a_stopped_run_goes_on_bit_for_bit(asking: Asking, passes: int) -> None:
    """What is drawn depends on seed, step and prompt; answers that a later step learns from are kept."""
    objective = OBJECTIVE | {"epochs_per_sample": passes, "kl_weight": 0.05}
    recipe = asking(objective=objective, train={"max_steps": 7})
    whole = start(recipe, "whole")
    with hearing(sending({"step 4/": [signal.SIGTERM]})):
        stopped = start(recipe, "stopped")
    assert stopped.outcome()["status"] == "stopped"
    training.resume(stopped.path, recipe=None)
    assert_equal(adapter_of(stopped), adapter_of(whole))
    assert column(stopped, "train/reward") == column(whole, "train/reward")


def test_steps_that_learn_from_the_same_answers(asking: Asking) -> None:
    """With three passes prompts are answered at each third step, and the ratio moves in between."""
    run = start(asking(objective=OBJECTIVE | {"epochs_per_sample": 3}, train={"max_steps": 6}))
    ratios = column(run, "train/log_ratio")
    assert max(ratios[0], ratios[3]) < 1e-5
    assert min(ratios[1], ratios[2], ratios[4], ratios[5]) > 1e-3
    assert len(column(run, "train/reward")) == 2


@pytest.mark.parametrize("continued", [False, True], ids=["fresh", "continued"])
def test_the_divergence_is_from_the_start(asking: Asking, continued: bool) -> None:
    """It is 0 at the first step, of an adapter that continues another too, and grows."""
    adapter = {"rank": 4}
    if continued:
        first = start(asking(), "first")
        adapter = {"continue_from": str(first.adapter)}
    run = start(asking(adapter=adapter, objective=OBJECTIVE | {"kl_weight": 0.01}))
    divergences = column(run, "train/kl")
    assert divergences[0] == pytest.approx(0, abs=1e-9)
    assert divergences[-1] > 1e-4


def test_a_constant_reward_teaches_nothing_and_says_so(asking: Asking) -> None:
    """Every answer is worth the same: no weight changes, the first such step is said, and so is the end."""
    objective = OBJECTIVE | {"rewards": {"same": {"kind": "regex", "pattern": "^"}}}
    lines: list[str] = []
    with hearing(lines.append):
        run = start(asking(objective=objective, train={"weight_decay": 0.1}))
    assert sum("step 1 learns nothing" in line for line in lines) == 1
    assert any("nothing was learned: whenever prompts were answered" in line for line in lines)
    assert column(run, "train/groups_without_signal") == [1.0] * 4
    weights = adapter_of(run)
    assert all(not weight.any() for name, weight in weights.items() if "lora_B" in name)


def test_a_step_without_signal_leaves_momentum_alone(asking: Asking, tmp_path: Path) -> None:
    """A reward that becomes the same for all in a later step changes no weight from there on, though Adam has
    momentum."""
    code = tmp_path / "rewards.py"
    code.write_text(
        "seen = [0]\n"
        "def reward(prompt, answer, references):\n"
        "    seen[0] += 1\n"
        "    return len(answer) if seen[0] <= 24 else 1\n"
    )
    sha256 = hashlib.sha256(code.read_bytes()).hexdigest()
    objective = OBJECTIVE | {"rewards": {"own": {"kind": "python", "code": str(code)}}}
    found = []
    for steps in (1, 3):
        recipe = asking(objective=objective, train={"max_steps": steps}, data={"evaluation": None})
        found.append(
            training.start(recipe, name="run", command="test", allow_code=frozenset({sha256})).folder
        )
    assert_equal(adapter_of(found[0]), adapter_of(found[1]))


def test_answers_that_were_cut_teach_nothing_when_masked(asking: Asking) -> None:
    """The micro-batch learns the tokens of the others alone; their rewards count."""
    objective = OBJECTIVE | {"mask_truncated": True, "max_new_tokens": 6}
    trainer = trainer_of(asking(objective=objective, train={"global_batch_size": 12}), Path("unused"))
    trainer.model_wrapped = trainer.model
    batches = first_step(trainer)
    means = trainer.rollouts.means()
    assert 0 < means["truncated"] < 1
    learned = sum(len(batch["position_values"]) for batch in batches)
    kept = sum(
        len(one.logprobs) for groups in trainer.rollouts.micro_batches for group in groups for one in group
    )
    assert learned == kept > 0
    assert not any(
        len(one.logprobs) == 6 and one.token_ids[-1] != trainer.rollouts.tokenizer.eos_token_id
        for groups in trainer.rollouts.micro_batches
        for group in groups
        for one in group
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objective: {kind: grpo}", "objective.rewards  missing"),
        ("objective: {kind: grpo, rewards: {}}", "objective.rewards"),
        (
            "objective: {kind: grpo, group_size: 1, rewards: {a: {kind: number}}}",
            "got 1, expected at least 2",
        ),
        (
            "objective: {kind: grpo, temperature: 0, rewards: {a: {kind: number}}}",
            "got 0, expected more than 0",
        ),
        (
            "{objective: {kind: grpo, rewards: {a: {kind: number}}}, adapter: {dropout: 0.1}}",
            "adapter.dropout  objective grpo compares the trained model with the one that drew",
        ),
        (
            "{objective: {kind: grpo, rewards: {a: {kind: number}}}, train: {neftune_alpha: 5}}",
            "other probabilities than the sampler",
        ),
        (
            "{objective: {kind: grpo, rewards: {a: {kind: number}}}, data: {pack_length_tokens: 4096}}",
            "data.pack_length_tokens  objective grpo: this is about rows' own answers",
        ),
        (
            "{objective: {kind: grpo, rewards: {a: {kind: number}}}, data: {train: [{path: a.txt, format: text}]}}",
            "data.train.0.format  objective grpo asks prompts",
        ),
        (
            "{objective: {kind: grpo, rewards: {a: {kind: number}}}, data: {over_length: split}}",
            "data.over_length  objective grpo: this is about rows' own answers",
        ),
        (
            "objective: {kind: grpo, rewards: {a: {kind: number, pattern: x}}}",
            "objective.rewards.a  pattern is read by kind regex alone",
        ),
        ("objective: {kind: grpo, rewards: {a: {kind: regex}}}", "kind regex needs pattern"),
        ("objective: {kind: grpo, rewards: {a: {kind: length}}}", "needs least_tokens or most_tokens"),
        (
            "objective: {kind: grpo, loss: dr_grpo, scale: group, rewards: {a: {kind: number}}}",
            "dr_grpo is without the division",
        ),
        (
            "objective: {kind: grpo, loss: cispo, clip_low: 0.1, rewards: {a: {kind: number}}}",
            "cispo bounds ratios from above alone",
        ),
        ("objective: {kind: ppo}", "the nearest is grpo"),
    ],
)
def test_bad_keys_are_refused(text: str, message: str) -> None:
    """Each with one message, by the recipe alone."""
    lines = found(text)
    assert len(lines) == 1
    assert message in lines[0]


def test_a_prompt_that_fills_the_context_is_refused(asking: Asking) -> None:
    """Before a weight is loaded, by its row."""
    with pytest.raises(
        FinetuneError, match=r"its prompt has \d+ tokens, and objective.max_new_tokens is 250"
    ):
        build_inputs(asking(objective=OBJECTIVE | {"max_new_tokens": 250}))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"kind": "pass"}, "has no tests to run"),
        ({"kind": "label"}, "has a label, and the recipe names none"),
        ({"kind": "regex", "pattern": "("}, r"the pattern '\(' can't be read"),
        (
            {"kind": "json_schema", "json_schema": {"type": "objekt"}},
            "json_schema.type: .objekt. is not valid",
        ),
        (
            {"kind": "json_schema", "json_schema": {"items": {"propertys": {}}}},
            "json_schema.items.propertys is no keyword",
        ),
    ],
)
def test_rewards_that_rows_or_machine_lack_are_refused(
    asking: Asking, reward: dict[str, Any], message: str
) -> None:
    """By the reward's name, before a weight is loaded."""
    with pytest.raises(FinetuneError, match=rf"objective.rewards.own(:| ).*{message}"):
        build_inputs(asking(objective=OBJECTIVE | {"rewards": {"own": reward}}))


def test_a_reward_model_that_ranks_nothing_is_refused(asking: Asking, drawing_base: Path) -> None:
    """A language model has no number for an answer."""
    with pytest.raises(ModelError, match="ranks no answers; expected a run of objective reward"):
        build_inputs(
            asking(objective=OBJECTIVE | {"rewards": {"own": {"kind": "run", "run": str(drawing_base)}}})
        )


def test_a_python_reward_needs_permission(asking: Asking, tmp_path: Path) -> None:
    """Exactly its content, on the command line."""
    code = tmp_path / "rewards.py"
    code.write_text("def reward(prompt, answer, references):\n    return float(len(answer))\n")
    recipe = asking(objective=OBJECTIVE | {"rewards": {"own": {"kind": "python", "code": str(code)}}})
    with pytest.raises(DataError, match=r"objective.rewards.own would run .*rewards.py(.|\n)*--allow-code"):
        build_inputs(recipe)


def test_answers_are_kept_with_their_rewards(asking: Asking) -> None:
    """Those to a prompt of the first step, as the log's means have them."""
    run = start(asking(train={"global_batch_size": 1, "micro_batch_size": 1, "max_steps": 2}))
    entries = list(map(json.loads, (run.path / "answers.jsonl").read_text().splitlines()))
    assert [entry["step"] for entry in entries] == [1] * 6
    digits = [entry["rewards"]["digits"] for entry in entries]
    assert digits == [float(any(letter.isdigit() for letter in entry["answer"])) for entry in entries]
    assert sum(digits) / 6 == pytest.approx(column(run, "train/rewards/digits")[0])


def test_a_reward_model_s_number_is_the_reward(asking: Asking, drawing_base: Path, tmp_path: Path) -> None:
    """That which the run itself gives of a prompt and an answer."""
    pairs = {
        "data": {
            "train": [{"path": write_pairs(tmp_path / "pairs.jsonl"), "format": "preference"}],
            "evaluation": None,
            "max_length_tokens": 96,
        },
        "train": TRAIN | {"max_steps": 2},
        "objective": {"kind": "reward"},
        "adapter": {"rank": 4},
        "model": {"base": str(drawing_base), "head": {"problem": "regression"}},
        "tracking": {"tracker": "none"},
        "output": {"folder": str(tmp_path / "runs")},
    }
    judge = start(with_objective_defaults(Recipe.model_validate(pairs)), "judge")
    objective = OBJECTIVE | {"rewards": {"judge": {"kind": "run", "run": str(judge.path)}}}
    rows = [{"messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1"}]}] * 2
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": [{"path": str(tmp_path / "chats.jsonl"), "format": "messages"}], "evaluation": None}
    run = start(asking(objective=objective, data=data, train={"max_steps": 1}))
    entries = list(map(json.loads, (run.path / "answers.jsonl").read_text().splitlines()))
    asked = [(entry["prompt"], entry["answer"]) for entry in entries]
    given = [entry["rewards"]["judge"] for entry in entries]
    assert len(set(given)) > 1
    model, tokenizer = load_ready(resolve_target(str(judge.path)), dtype=torch.float32)
    expected = rewards_of_answers(model, tokenizer, asked, HEAD, 4)
    assert given == pytest.approx([own for (own,) in expected], abs=1e-5)
    weights = (judge.adapter / "adapter_model.safetensors").read_bytes()
    assert read_lock(run.lock_path).rewards["judge adapter"] == hashlib.sha256(weights).hexdigest()


def test_a_run_goes_on_with_the_rewards_that_it_was_begun_with(asking: Asking, tmp_path: Path) -> None:
    """Another file under the same name is another reward, also where it is allowed to run."""
    code = tmp_path / "rewards.py"
    allowed = set[str]()
    for sign in "-+":
        code.write_text(f"def reward(prompt, answer, references):\n    return {sign}len(answer)\n")
        allowed.add(hashlib.sha256(code.read_bytes()).hexdigest())
        if sign == "-":
            recipe = asking(objective=OBJECTIVE | {"rewards": {"own": {"kind": "python", "code": str(code)}}})
            with hearing(sending({"step 2/": [signal.SIGTERM]})):
                training.start(recipe, name="run", command="test", allow_code=frozenset(allowed))
    run = next((tmp_path / "runs").iterdir())
    with pytest.raises(CheckpointError, match="rewards changed since this run was started: own code then"):
        training.resume(run, recipe=None, allow_code=frozenset(allowed))


def test_a_reward_s_file_lies_beside_its_recipe(tmp_path: Path) -> None:
    """A path is one from the file that names it; one that isn't there is said at its place."""
    (tmp_path / "mine.py").write_text("def reward(prompt, answer, references): return 1\n")
    path = tmp_path / "own.yaml"
    rewards = "extends: grpo/orders\nobjective: {rewards: {own: {kind: python, code: %s}}}\n"
    path.write_text(rewards % "mine.py")
    assert load_recipe(path).recipe.objective.options["rewards"]["own"]["code"] == str(tmp_path / "mine.py")
    path.write_text(rewards % "yours.py")
    with pytest.raises(RecipeError, match=r"own.yaml:2:\d+  objective.rewards.own.code  no such Python file"):
        load_recipe(path)

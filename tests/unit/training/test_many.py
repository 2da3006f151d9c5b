"""Several adapters of one base that train together: each is what it would be alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import TrainingError
from finetune.models.adapters.joint import JointDecoder
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.lock import CURRENT_RULES, Rules, read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training import build
from finetune.training.inputs import build_inputs
from finetune.training.many import Outcome, start_many
from finetune.training.reproduce import reproduce
from finetune.training.trainer import ExactTrainer
from tests.support.cli import FinetuneHere
from tests.support.messages import hearing, sending
from tests.support.preferences import column, write_pairs
from tests.support.processes import adapter_of, assert_equal, start, wait_for
from tests.support.recipes import MakeRecipe
from tests.unit.runs.wandb_files import wandb_history

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.5, "precision": "fp32", "max_steps": 8}
SAVING: dict[str, Any] = {"precision": "fp32", "learning_rate": 1e-2, "max_steps": 12, "save_every": 4}
ROOT = Path(__file__).resolve().parents[3]


def train(*recipes: Recipe, most: int = 8) -> list[RunFolder]:
    """Together; each comes to its end."""
    outcomes = carried_out(*recipes, most=most)
    assert [outcome.status for outcome in outcomes] == ["finished"] * len(recipes)
    return [folder_of(outcome) for outcome in outcomes]


def carried_out(*recipes: Recipe, most: int = 8) -> list[Outcome]:
    loaded = [LoadedRecipe(recipe, Path("recipe.yaml"), {}) for recipe in recipes]
    return start_many(loaded, names=[f"run{number}" for number in range(len(recipes))], most=most)


def folder_of(outcome: Outcome) -> RunFolder:
    assert outcome.folder is not None
    return RunFolder(outcome.folder)


def distance(one: RunFolder, other: RunFolder) -> float:
    """Of two adapters, relative to the second."""
    found, wanted = adapter_of(one), adapter_of(other)
    assert found.keys() == wanted.keys()
    far = sum(float((found[name].double() - wanted[name].double()).square().sum()) for name in wanted)
    return float((far / sum(float(wanted[name].double().square().sum()) for name in wanted)) ** 0.5)


def others(make_recipe: MakeRecipe) -> dict[str, Recipe]:
    """Recipes that have nothing but the base in common."""
    few = {"rank": 4, "target_modules": ["q_proj", "down_proj"]}
    accumulates = {"learning_rate": 0.1, "global_batch_size": 2, "micro_batch_size": 1}
    return {
        "plain": make_recipe(train=SGD),
        "few targets, five steps": make_recipe(train=SGD | {"seed": 7, "max_steps": 5}, adapter=few),
        "accumulates": make_recipe(train=SGD | accumulates),
        "noise": make_recipe(train=SGD | {"neftune_alpha": 5.0}),
    }


def test_each_adapter_is_what_it_is_alone(make_recipe: MakeRecipe) -> None:
    """Other ranks, targets, rates, batch sizes, lengths and orders of the data beside it change nothing."""
    recipes = others(make_recipe)
    for (name, recipe), together in zip(recipes.items(), train(*recipes.values()), strict=True):
        alone = start(recipe)
        assert distance(together, alone) < 1e-5, name
        losses = [run.read_summary()["evaluation_loss"] for run in (together, alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), name


def test_adam_is_no_farther_from_the_exact_run(make_recipe: MakeRecipe) -> None:
    """AdamW makes noise of rounding errors near zero: trained together an adapter moves away from its lone run
    no more than a run in another order of sums does."""
    adam = {"precision": "fp32", "learning_rate": 1e-3, "max_steps": 8}
    recipe = make_recipe(train=adam)
    together, _ = train(recipe, make_recipe(train=adam | {"seed": 5}))
    alone = start(recipe)
    other_order = start(make_recipe(train=adam | {"micro_batch_size": 1}))
    assert distance(together, alone) <= 2 * max(distance(other_order, alone), 1e-6)


def test_a_preference_run_beside_a_supervised_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Other objectives share the pass: shared prompts, references and losses are each run's own."""
    pairs = {"train": [{"path": write_pairs(tmp_path / "pairs.jsonl"), "format": "preference"}]}
    preference = make_recipe(
        train=SGD | {"learning_rate": 0.05}, objective={"kind": "dpo"}, data=pairs | {"evaluation": None}
    )
    together, _ = train(preference, make_recipe(train=SGD))
    assert distance(together, start(preference)) < 1e-5


def test_quantised_base(make_recipe: MakeRecipe) -> None:
    """Of a base in NF4, which is in memory once, each adapter is what it is alone."""
    recipes = [make_recipe(train=SGD | {"seed": seed}, adapter={"method": "qlora"}) for seed in (1, 2)]
    for recipe, together in zip(recipes, train(*recipes), strict=True):
        assert distance(together, start(recipe)) < 1e-5


def test_recomputed_activations(make_recipe: MakeRecipe) -> None:
    """Layers that are computed again in the backward pass draw the same dropout."""
    recipes = [
        make_recipe(train=SGD | {"activation_checkpointing": checkpointing}, adapter={"dropout": 0.2})
        for checkpointing in (False, True)
    ]
    kept, recomputed = (train(recipe, make_recipe(train=recipe.train.model_dump()))[0] for recipe in recipes)
    assert distance(recomputed, kept) < 1e-6


def test_dropout_is_drawn_from_an_adapter_s_own_seed(make_recipe: MakeRecipe) -> None:
    """What is dropped doesn't depend on the others, and something is."""
    recipe = make_recipe(train=SGD, adapter={"dropout": 0.2})
    one, _ = train(recipe, make_recipe(train=SGD | {"seed": 5}))
    other, _, _ = train(
        recipe, make_recipe(train=SGD | {"seed": 6}, adapter={"dropout": 0.5}), make_recipe(train=SGD)
    )
    assert distance(one, other) < 1e-5
    assert distance(one, start(make_recipe(train=SGD))) > 1e-3


def test_a_run_that_fails_leaves_the_others_alone(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """NaN in one adapter's rows ends that one at its step; the others' bits are as if it had come to its end
    there."""
    steady = make_recipe(train=SGD)
    trained = start(make_recipe(train=SGD | {"max_steps": 1}), "broken").adapter
    broken = shutil.copytree(trained, tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    wild = {name: weight * (1e30 if "lora_A" in name else 1) for name, weight in weights.items()}
    save_file(wild, broken / "adapter_model.safetensors", {"format": "pt"})
    bad = make_recipe(train=SGD, adapter={"continue_from": str(broken)}, data={"evaluation": None})
    finished, failed = carried_out(steady, bad)
    assert (finished.status, failed.status) == ("finished", "failed")
    assert "at step 1; nothing was updated" in str(failed.error)
    assert folder_of(failed).read_summary()["status"] == "failed"
    without, _ = train(steady, make_recipe(train=SGD | {"max_steps": 1}))
    assert_equal(adapter_of(folder_of(finished)), adapter_of(without))


def test_others_wait_for_a_place(make_recipe: MakeRecipe) -> None:
    """With two places, the third run joins when one has left, and is what it is alone."""
    recipes = [make_recipe(train=SGD | {"max_steps": steps}) for steps in (3, 6, 4)]
    for recipe, together in zip(recipes, train(*recipes, most=2), strict=True):
        assert distance(together, start(recipe)) < 1e-5


def test_a_teacher_is_asked_for_each_run_alone(make_recipe: MakeRecipe) -> None:
    """A teacher that is the base without the adapter reads the run's own batch, behind the common pass."""
    objective = {"kind": "distill", "teacher": "base", "supervised_weight": 0.5}
    recipe = make_recipe(train=SGD, objective=objective)
    together, _ = train(recipe, make_recipe(train=SGD))
    alone = start(recipe)
    assert distance(together, alone) < 1e-5
    divergences = [column(run, "eval/losses/divergence") for run in (together, alone)]
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-4, abs=1e-6)
    assert divergences[0][-1] > 1e-3


def test_what_a_teacher_said_before_goes_with_each_run(make_recipe: MakeRecipe) -> None:
    """Offline, each position of a run's own batch has its teacher's likeliest tokens."""
    recipes = [
        make_recipe(
            train=SGD,
            objective={"kind": "distill", "teacher": "base", "top_k": count, "supervised_weight": 0.5},
        )
        for count in (4, 16)
    ]
    for recipe, together in zip(recipes, train(*recipes), strict=True):
        assert distance(together, start(recipe)) < 1e-5


def test_each_run_has_a_wandb_run_of_its_own(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb would give a second run of a process the first one's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = {"tracking": {"tracker": "wandb"}}
    runs = train(
        make_recipe(train=SGD | {"max_steps": 1}, **tracked),
        make_recipe(train=SGD | {"max_steps": 3, "seed": 5}, **tracked),
    )
    for run in runs:
        (file,) = run.path.rglob("*.wandb")
        assert wandb_history(file)["train/loss"] == column(run, "train/loss")[-1]


def test_what_a_run_held_is_free_when_it_has_left(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a run that ended, and of one that failed, are for those that come."""
    weights: dict[int, weakref.ref[torch.Tensor]] = {}
    alive: dict[int, bool] = {}
    own_step = ExactTrainer.training_step

    def step(trainer: ExactTrainer, *inputs: Any) -> torch.Tensor:
        steps, taken = trainer.args.max_steps, trainer.state.global_step
        trained = (weight for weight in trainer.model.parameters() if weight.requires_grad)
        weights.setdefault(steps, weakref.ref(next(trained)))
        if (steps, taken) == (4, 2):
            raise TrainingError("an error of this run")
        if (steps, taken) == (8, 6):
            alive.update({number: weight() is not None for number, weight in weights.items()})
        return own_step(trainer, *inputs)

    monkeypatch.setattr(ExactTrainer, "training_step", step)
    outcomes = carried_out(*(make_recipe(train=SGD | {"max_steps": steps}) for steps in (2, 4, 8)))
    assert [outcome.status for outcome in outcomes] == ["finished", "failed", "finished"]
    assert alive == {2: False, 4: False, 8: True}


def test_sums_are_in_one_order_until_the_last_run_ends(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train.deterministic holds for those who stay, and is as before afterwards."""
    found: list[bool] = []
    own_step = ExactTrainer.training_step

    def step(trainer: ExactTrainer, *inputs: Any) -> torch.Tensor:
        found.append(torch.are_deterministic_algorithms_enabled())
        return own_step(trainer, *inputs)

    monkeypatch.setattr(ExactTrainer, "training_step", step)
    train(*(make_recipe(train=SGD | {"max_steps": steps, "deterministic": True}) for steps in (2, 6)))
    assert all(found)
    assert not torch.are_deterministic_algorithms_enabled()


def test_no_two_runs_have_one_name(make_recipe: MakeRecipe) -> None:
    """Also where one is called what another would become."""
    loaded = LoadedRecipe(make_recipe(train=SGD | {"max_steps": 1}), Path("a.yaml"), {})
    outcomes = start_many([loaded] * 4, names=["a", "a", "a-2", "a"])
    assert [outcome.name for outcome in outcomes] == ["a-1", "a-3", "a-2", "a-4"]


def test_done_again_alone_it_may_differ(make_recipe: MakeRecipe) -> None:
    """What was trained with others is reproduced alone within rounding, and the report says why."""
    run, _ = train(make_recipe(train=SGD), make_recipe(train=SGD))
    again = reproduce(run, read_lock(run.lock_path), despite=frozenset(), folder=None)
    assert any("other runs were trained in the same passes" in line for line in again.differs)
    assert again.weights_distance < 1e-5
    again.refuse_unlike()


SCRIPT = """
import sys
from pathlib import Path
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.schema import Recipe
from finetune.training.many import start_many

recipes = [LoadedRecipe(Recipe.model_validate_json(text), Path("x.yaml"), {}) for text in sys.argv[1:]]
outcomes = start_many(recipes, names=["one", "two"])
print([outcome.status for outcome in outcomes])
"""


@pytest.mark.long
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_runs_resume_together_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path, end: signal.Signals
) -> None:
    """Killed (kill -9), or stopped, in the middle and resumed together, both end in the uninterrupted
    adapters, dropout included."""
    recipes = [
        make_recipe(
            train=SAVING | {"seed": seed}, adapter={"dropout": 0.1}, output={"folder": str(tmp_path / place)}
        )
        for place in ("whole", "cut")
        for seed in (1, 2)
    ]
    whole = train(*recipes[:2])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *(recipe.model_dump_json() for recipe in recipes[2:])],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    runs = [tmp_path / "cut" / f"{name}-001" for name in ("one", "two")]
    wait_for(runs[0] / "checkpoints" / "checkpoint-4" / "complete.json", process)
    process.send_signal(end)
    process.communicate(timeout=120)
    assert not any(RunFolder(run).finished for run in runs)
    outcomes = start_many([], runs)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 2
    for run, uninterrupted in zip(outcomes, whole, strict=True):
        assert_equal(adapter_of(folder_of(run)), adapter_of(uninterrupted))


def test_after_a_stop_none_begins(make_recipe: MakeRecipe) -> None:
    """Whoever waits for a place is not prepared any more."""
    said: list[str] = []
    stop = sending({"step 2/": [signal.SIGTERM]})

    def hear(line: str) -> None:
        said.append(line)
        stop(line)

    with hearing(hear):
        first, second = carried_out(make_recipe(train=SGD), make_recipe(train=SGD), most=1)
    assert (first.status, second.status, second.folder) == ("stopped", "stopped", None)
    assert sum("rows to train on" in line for line in said) == 1


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(
        update={section: type(getattr(recipe, section)).model_validate(
            getattr(recipe, section).model_dump() | values
        )}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("adapter", {"method": "full"}, "trains the base, which the others share"),
        ("adapter", {"init": "pissa"}, "init: pissa alters the base"),
        ("adapter", {"use_dora": True}, "use_dora isn't computed for several adapters"),
        ("adapter", {"modules_to_save": ["lm_head"]}, "modules_to_save are the base's"),
        ("model", {"new_tokens": ["<a>"]}, "new_tokens are rows of the base's embedding"),
        ("model", {"head": {"labels": ["a", "b"]}}, "a head is one of its own"),
        ("train", {"precision": "fp16"}, "fp16 has a loss scale"),
        ("objective", {"kind": "grpo", "rewards": {"a": {"kind": "number"}}}, "grpo draws answers between"),
        ("train", {"mlp_tile_tokens": 64}, "mlp_tile_tokens is for one adapter"),
    ],
)
def test_what_can_t_be_shared_is_refused(
    make_recipe: MakeRecipe, section: str, values: dict[str, Any], message: str
) -> None:
    """Before anything is trained, with the reason and what to do."""
    recipe = make_recipe(train=SGD)
    with pytest.raises(TrainingError, match=message) as caught:
        carried_out(recipe, changed(recipe, section, **values))
    assert str(caught.value).startswith("run1: ")
    assert str(caught.value).endswith("Train it alone.")
    assert not Path(recipe.output.folder).exists()


def test_another_base_is_that_run_s_error(make_recipe: MakeRecipe, tmp_path: Path, tiny_base: Path) -> None:
    """A run whose base has other weights leaves no folder; the one before it trains."""
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: weight * 2 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    first, second = carried_out(make_recipe(train=SGD), make_recipe(train=SGD, model={"base": str(other)}))
    assert (first.status, second.status, second.folder) == ("finished", "failed", None)
    assert "model.base is" in str(second.error)
    assert "runs that train together share it" in str(second.error)


def test_what_is_common_is_known_by_content(make_recipe: MakeRecipe) -> None:
    """Two commits of one name are two bases, two folders of the same files are one; a run that was started by
    older rules is not one of today's."""
    recipe = make_recipe(train=SGD)
    inputs = build_inputs(recipe)

    def facts(identity: dict[str, str], rules: Rules = CURRENT_RULES) -> dict[str, Any]:
        base = replace(inputs.base, identity=identity)
        return build._common_facts(recipe, replace(inputs, base=base, rules=rules))

    hub = [{"kind": "hub", "name": "org/model", "commit": commit} for commit in ("aaa", "bbb")]
    assert facts(hub[0]) != facts(hub[1])
    folders = [{"kind": "folder", "name": name} for name in ("one", "two")]
    assert facts(folders[0]) == facts(folders[1])
    assert facts(folders[0]) != facts(folders[0], replace(CURRENT_RULES, training=1))


def test_too_many_for_memory_is_one_message(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pass for all: what to lower is named, and every run resumes from its checkpoint."""
    own, passes = JointDecoder.__call__, list[int]()

    def fails(decoder: JointDecoder, batches: Any) -> Any:
        passes.append(len(batches))
        if len(passes) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return own(decoder, batches)

    recipes = [make_recipe(train=SGD | {"seed": seed, "save_every": 2, "max_steps": 6}) for seed in (1, 2)]
    whole = train(*recipes)
    with monkeypatch.context() as patched:
        patched.setattr(JointDecoder, "__call__", fails)
        with pytest.raises(TrainingError, match=r"^out of memory: CUDA .* GiB\. Lower --max-adapters, train"):
            carried_out(*recipes)
    stopped = sorted(set(Path(recipes[0].output.folder).iterdir()) - {run.path for run in whole})
    assert [RunFolder(run).outcome()["status"] for run in stopped] == ["failed"] * 2
    resumed = start_many([], stopped)
    for run, uninterrupted in zip(resumed, whole, strict=True):
        assert_equal(adapter_of(folder_of(run)), adapter_of(uninterrupted))


@pytest.fixture
def recipe_file(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    recipe = make_recipe(train=SGD | {"max_steps": 2})
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
    return path


def test_variants_of_a_recipe(finetune_here: FinetuneHere, recipe_file: Path, tmp_path: Path) -> None:
    """A file's variants are runs by its names, with its values; messages say whose they are."""
    (tmp_path / "v.yaml").write_text(
        "low: {train.learning_rate: 0.01}\nhigh: {train: {learning_rate: 0.1}}\n"
    )
    result = finetune_here("train-many", recipe_file.name, "--variants", "v.yaml", "train.max_steps=3")
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["low", "finished"], ["high", "finished"]]
    assert any(line.startswith("high: ") and "step 3/3" in line for line in lines)
    rates = [
        json.loads((Path(line.split()[2]) / "summary.json").read_text())["recipe"]["train"]["learning_rate"]
        for line in lines[-2:]
    ]
    assert rates == [0.01, 0.1]


@pytest.mark.parametrize(
    ("words", "variants", "message"),
    [
        (["RECIPE"], None, "got 1 runs to train together, expected at least two"),
        ([], None, "got none, expected at least two"),
        (["RECIPE", "RECIPE"], "a: {}", "are of one recipe, and got 2"),
        (["RECIPE"], "a: 3", "v.yaml:1:1  a  got 3, expected the values that it gives keys"),
        (["RECIPE"], "a: {}\n'b c': {}", "v.yaml:2:1  b c  expected a name of letters, digits, - and _"),
        (["RECIPE"], "a: {}\nb: {train.rate: 1}", "v.yaml:2:1  train.rate"),
        (["RECIPE"], "[1]", "expected a mapping: {name: {train.learning_rate: 1e-4}, ...}"),
        (["nowhere.yaml", "RECIPE"], None, "no such recipe"),
    ],
)
def test_bad_input_is_one_message(
    finetune_here: FinetuneHere,
    recipe_file: Path,
    tmp_path: Path,
    words: list[str],
    variants: str | None,
    message: str,
) -> None:
    """It says where, what was got and what was expected; nothing is trained."""
    options = []
    if variants is not None:
        (tmp_path / "v.yaml").write_text(variants)
        options = ["--variants", "v.yaml"]
    named = [recipe_file.name if word == "RECIPE" else word for word in words]
    assert message in finetune_here("train-many", *named, *options, code=2).stderr

"""A student that learns from a teacher: a run, a model, or itself without its adapter."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.engines.launch.check import check_launch, plan_launch
from finetune.errors import CheckpointError, LaunchError, ModelError, RecipeError
from finetune.recipe.load import load_recipe
from finetune.runs.folder import RunFolder
from finetune.training import run as training
from finetune.training.inputs import build_inputs
from tests.support.messages import hearing, sending
from tests.support.models import save_tiny_llama
from tests.support.preferences import column
from tests.support.processes import adapter_of, start
from tests.support.recipes import MakeRecipe, found

TRAIN: dict[str, Any] = {
    "precision": "fp32",
    "learning_rate": 1e-2,
    "max_steps": 12,
    "evaluate_every": "6 steps",
}


@pytest.fixture
def teacher(make_recipe: MakeRecipe) -> RunFolder:
    return start(make_recipe(train=TRAIN | {"max_steps": 20}), "teacher")


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_comes_nearer_to_its_teacher(
    make_recipe: MakeRecipe, teacher: RunFolder, divergence: str
) -> None:
    """What is learned and evaluated is the divergence; the teacher's own loss is logged beside it."""
    objective = {"kind": "distill", "teacher": str(teacher.path), "divergence": divergence}
    run = start(make_recipe(train=TRAIN, objective=objective))
    summary = run.read_summary()
    assert summary["evaluation_loss"] < 0.7 * summary["evaluation_loss_before"]
    assert column(run, "eval/losses/divergence")[-1] == pytest.approx(summary["evaluation_loss"], rel=1e-6)
    its_own = teacher.read_summary()["evaluation_loss"]
    assert column(run, "eval/teacher/loss")[-1] == pytest.approx(its_own, rel=1e-5)
    assert not any("perplexity" in name for line in run.metrics_path.open() for name in json.loads(line))


def test_its_base_is_a_teacher_without_a_second_model(make_recipe: MakeRecipe) -> None:
    """Before the first step student and teacher are one, and with the rows' own tokens to learn the divergence
    is what they cost."""
    alone = {"kind": "distill", "teacher": "base"}
    run = start(make_recipe(train=TRAIN, objective=alone))
    assert column(run, "eval/losses/divergence") == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    mixed = start(make_recipe(train=TRAIN, objective=alone | {"supervised_weight": 0.5}))
    divergences = column(mixed, "eval/losses/divergence")
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert divergences[-1] > 1e-3
    supervised = column(mixed, "eval/losses/supervised")
    assert supervised[-1] < supervised[0]


def test_packs_and_batches_are_the_same(make_recipe: MakeRecipe, teacher: RunFolder) -> None:
    """A teacher sees the documents of a pack apart, as the student does."""
    objective = {"kind": "distill", "teacher": str(teacher.path), "supervised_weight": 0.25}
    train = TRAIN | {"optimizer": "sgd", "learning_rate": 0.1, "micro_batch_size": 4}
    padded = start(make_recipe(train=train, objective=objective))
    recipe = make_recipe(train=train | {"micro_batch_size": 1}, objective=objective)
    cut = start(recipe)
    packed = make_recipe(train=train, objective=objective, data={"pack_length_tokens": 256})
    first = build_inputs(packed)
    assert first.data.packs is not None
    one, other = adapter_of(padded), adapter_of(cut)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    assert start(packed).read_summary()["evaluation_loss_before"] == pytest.approx(
        padded.read_summary()["evaluation_loss_before"], rel=1e-5
    )


def test_a_teacher_of_other_layers(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A model of another shape teaches, where it reads the same tokens."""
    save_tiny_llama(tmp_path / "larger", num_hidden_layers=3, hidden_size=96, intermediate_size=64)
    objective = {"kind": "distill", "teacher": str(tmp_path / "larger")}
    summary = start(make_recipe(train=TRAIN, objective=objective)).read_summary()
    assert summary["evaluation_loss"] < summary["evaluation_loss_before"]


def test_a_teacher_of_another_tokenizer_is_refused(
    make_recipe: MakeRecipe, tmp_path: Path, tiny_base: Path
) -> None:
    """By the first token that differs, before a weight is loaded."""
    other = tmp_path / "other"
    save_tiny_llama(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[10:12]
    words[first], words[second] = words[second], words[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"objective.teacher: the tokenizer of .* is another one"):
        build_inputs(make_recipe(objective={"kind": "distill", "teacher": str(other)}))


def test_a_teacher_that_changed_is_noticed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A run doesn't go on with another teacher than it was begun with: its weights are in the lock."""
    trained = start(make_recipe(train=TRAIN | {"max_steps": 2}), "teacher")
    teacher = shutil.copytree(trained.adapter, tmp_path / "teacher")
    objective = {"kind": "distill", "teacher": str(teacher)}
    with hearing(sending({"step 2/": [signal.SIGTERM]})):
        run = start(make_recipe(train=TRAIN, objective=objective))
    assert run.outcome()["status"] == "stopped"
    weights = load_file(teacher / "adapter_model.safetensors")
    doubled = {name: weight * 2 for name, weight in weights.items()}
    save_file(doubled, teacher / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="teacher changed since this run was started: adapter then"):
        training.resume(run.path, recipe=None)


def test_a_teacher_of_fewer_positions_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """It would be asked about what it never read."""
    save_tiny_llama(tmp_path / "short", max_position_embeddings=32)
    with pytest.raises(ModelError, match=r"objective.teacher: .* has 32 positions, and rows may have 128"):
        build_inputs(make_recipe(objective={"kind": "distill", "teacher": str(tmp_path / "short")}))


def test_a_teacher_lies_beside_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is one from the file that names it, and a run's lock has it absolute."""
    (tmp_path / "models" / "big").mkdir(parents=True)
    monkeypatch.setenv("MODELS", "models")
    path = tmp_path / "small.yaml"
    path.write_text("extends: distill/self\nobjective: {kind: distill, teacher: '${MODELS}/big'}\n")
    assert load_recipe(path).recipe.objective.options["teacher"] == str(tmp_path / "models" / "big")
    path.write_text("extends: distill/self\nobjective: {kind: distill, teacher: ./models/bag}\n")
    with pytest.raises(RecipeError, match=r"small.yaml:2:\d+  objective.teacher  no such folder: looked at"):
        load_recipe(path)


def test_a_teacher_that_predicts_labels_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """It has no distribution over tokens."""
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"text": "blue", "label": "a"}\n{"text": "lamp", "label": "b"}\n' * 8)
    classifier = start(
        make_recipe(
            train={"max_steps": 1, "precision": "fp32"},
            model={"head": {"labels": ["a", "b"]}},
            data={"train": [{"path": str(labels), "format": "classification"}], "evaluation": None},
        )
    )
    with pytest.raises(ModelError, match="predicts labels; expected one that predicts tokens"):
        build_inputs(make_recipe(objective={"kind": "distill", "teacher": str(classifier.path)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objective: {kind: distill}", "objective.teacher"),
        ("objective: {kind: distill, teacher: ' '}", "expected a run, an adapter, a model, or base"),
        (
            "{objective: {kind: distill, teacher: base}, adapter: {method: full}}",
            "has no adapter to leave out",
        ),
        (
            "{objective: {kind: distill, teacher: base}, adapter: {modules_to_save: [lm_head]}}",
            "lm_head are trained beside the adapter",
        ),
        (
            "objective: {kind: distill, teacher: base, teacher_quantization: nf4}",
            "objective.teacher_quantization  the teacher is model.base as it is",
        ),
        (
            "objective: {kind: distill, teacher: base, beta: 0.3}",
            "objective.beta  only divergence jsd has it",
        ),
        ("objective: {kind: distill, teacher: base, divergence: jsd, beta: 1}", "objective.beta"),
        (
            "{objective: {kind: distill, teacher: base}, train: {label_smoothing: 0.1}}",
            "train.label_smoothing  objective distill has no such loss",
        ),
        (
            "{objective: {kind: distill, teacher: base}, adapter: {target_modules: [lm_head]}}",
            "an adapter on it is beside that",
        ),
    ],
)
def test_what_does_not_fit_is_refused(text: str, message: str) -> None:
    """By the recipe's rules, with the key."""
    assert any(message in problem for problem in found(text)), found(text)


@pytest.mark.parametrize(
    ("engine", "changed", "message"),
    [
        ("zero3", {}, "was never shown to train beside a teacher. Take ddp or fsdp2"),
        ("fsdp2", {"adapter": {"method": "full"}}, "the head is trained here"),
        ("fsdp2", {"adapter": {"modules_to_save": ["lm_head"]}}, "the head is trained here"),
    ],
    ids=["zero3", "all weights", "the head saved"],
)
def test_what_is_cut_up_and_can_not_be_compared_is_refused(
    make_recipe: MakeRecipe, tmp_path: Path, engine: str, changed: dict[str, Any], message: str
) -> None:
    """With one message, before a process is started."""
    recipe = make_recipe(objective={"kind": "distill", "teacher": str(tmp_path)}, **changed)
    with pytest.raises(LaunchError, match=f"objective.teacher: .*{message}"):
        check_launch(plan_launch(engine, processes=2), recipe)


def test_nothing_else_is_in_the_run_s_model(make_recipe: MakeRecipe, teacher: RunFolder) -> None:
    """A teacher's weights are no part of the student: not trained, not saved."""
    run = start(
        make_recipe(
            train=TRAIN | {"max_steps": 1}, objective={"kind": "distill", "teacher": str(teacher.path)}
        )
    )
    assert all("lora_" in name for name in adapter_of(run))
    assert all(isinstance(weight, torch.Tensor) for weight in adapter_of(run).values())

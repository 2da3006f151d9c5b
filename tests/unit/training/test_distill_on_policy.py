"""A student some of whose rows have its own answers, which a teacher judges."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.generation.loading import load_ready
from finetune.generation.sampler import sample
from finetune.models.kernels.noise import seed_of
from finetune.recipe.schema import Recipe
from finetune.runs.target import resolve_target
from finetune.training import build
from finetune.training import run as training
from finetune.training.drawing import Drawing
from finetune.training.inputs import build_inputs
from finetune.training.trainer import ExactTrainer
from tests.support.messages import hearing, sending
from tests.support.models import save_tiny_llama
from tests.support.preferences import column
from tests.support.processes import adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import found, prompts_recipe, write_prompts

TRAIN: dict[str, Any] = {
    "precision": "fp32", "learning_rate": 1e-2, "schedule": "constant", "max_steps": 6, "global_batch_size": 6,
    "micro_batch_size": 3, "evaluate_every": 3, "rehearsal": False,
}  # fmt: skip

Asking = Callable[..., Recipe]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose answers differ from one another, and a teacher of another shape."""
    folder = tmp_path_factory.mktemp("on_policy")
    save_tiny_llama(folder / "student", initializer_range=0.15)
    save_tiny_llama(folder / "teacher", hidden_size=96, intermediate_size=64, initializer_range=0.1)
    return folder


@pytest.fixture
def asking(models: Path, tmp_path: Path) -> Asking:
    """asking(fraction=..., section={...}) -> a recipe of 16 prompts, four of them held out."""
    write_prompts(tmp_path)

    def make(fraction: float | None = 0.5, drawing: Any = None, **sections: dict[str, Any]) -> Recipe:
        on_policy = (
            None if fraction is None else {"fraction": fraction, "max_new_tokens": 12, **(drawing or {})}
        )
        objective = {"kind": "distill", "teacher": str(models / "teacher"), "on_policy": on_policy}
        return prompts_recipe(tmp_path, models / "student", objective, TRAIN, sections)

    return make


def step_of(trainer: ExactTrainer, step: int) -> list[dict[str, Any]]:
    """The micro-batches of a step, drawn by the model as it is."""
    assert isinstance(trainer.rollouts, Drawing)
    accumulation = trainer.feed.batching.accumulation
    trainer.feed.restore(step - 1, {})
    batches = iter(trainer.feed)
    return trainer.rollouts.answered([next(batches) for _ in range(accumulation)])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_comes_nearer_to_its_teacher(asking: Asking, divergence: str) -> None:
    """On answers of its own too; share and lengths are logged, and some answers can be read."""
    run = start(asking(objective={"divergence": divergence}, train={"max_steps": 12}))
    losses = column(run, "eval/loss")
    assert losses[-1] < losses[0]
    assert column(run, "train/on_policy/share") == [0.5] * 12
    assert all(1 <= tokens <= 12 for tokens in column(run, "train/on_policy/answer_tokens"))
    assert all(0 <= share <= 1 for share in column(run, "train/on_policy/truncated"))
    first = json.loads((run.path / "answers.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    assert first["prompt"].startswith("number")


def test_what_is_learned_is_what_the_student_would_say(asking: Asking, tmp_path: Path) -> None:
    """The documents of a step: half of them rows, half of them prompts with what the sampler draws of the
    step's seed."""
    recipe = asking()
    trainer = trainer_of(recipe, tmp_path / "checkpoints")
    batches = step_of(trainer, 1)
    places = [place for batch in batches for place in batch["places"]]
    own = [place.removesuffix(", own answer") for place in places if place.endswith(", own answer")]
    assert len(own) == 3
    assert len(places) == 6
    model, tokenizer = load_ready(resolve_target(str(recipe.model.base)), dtype=torch.float32)
    assert trainer.rollouts is not None
    questions = {question.place: question for question in trainer.rollouts.feed.questions}
    for batch in batches:
        ids = batch["input_ids"][0].split(batch["documents"])
        labels = batch["shift_labels"][0].split(batch["documents"])
        for place, tokens, learned in zip(batch["places"], ids, labels, strict=True):
            if not place.endswith(", own answer"):
                continue
            prompt = list(questions[place.removesuffix(", own answer")].prompt_ids)
            ((drawn,),) = sample(
                model,
                tokenizer,
                [prompt],
                count=1,
                max_new_tokens=12,
                batch_size=1,
                seed=seed_of(trainer.args.seed, 1),
            )
            assert tokens.tolist() == prompt + drawn.ids
            assert learned[learned != -100].tolist() == drawn.ids


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_fraction_of_each_batch_is_asked(asking: Asking, tmp_path: Path, fraction: float) -> None:
    """To within one row in each step, and over many steps in the mean."""
    feed = build.build_feed(recipe := asking(fraction), build_inputs(recipe))
    batches, counts = iter(feed), []
    for _ in range(100):
        step = [next(batches) for _ in range(feed.batching.accumulation)]
        counts.append(sum(before is not None for one in step for before in one["asked_before"]))
    rows = 6
    assert all(abs(count - fraction * rows) < 1 for count in counts)
    assert sum(counts) / (100 * rows) == pytest.approx(fraction, abs=0.03)


def test_a_stopped_run_continues_bit_for_bit(asking: Asking) -> None:
    """Answers follow from the seed, the step and the weights."""
    recipe = asking(adapter={"rank": 4, "dropout": 0.1})
    whole = start(recipe)
    with hearing(sending({"step 2/": [signal.SIGTERM]})):
        run = start(recipe)
    training.resume(run.path, recipe=None)
    assert_equal(adapter_of(run), adapter_of(whole))
    assert column(run, "train/on_policy/answer_tokens") == column(whole, "train/on_policy/answer_tokens")


def test_micro_batches_change_nothing(asking: Asking) -> None:
    """How a step is cut is seen in rounding alone."""
    train = {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 3}
    runs = [start(asking(train=train | {"micro_batch_size": size}), f"of-{size}") for size in (1, 6)]
    one, other = map(adapter_of, runs)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


def test_its_base_teaches_without_a_second_model(asking: Asking) -> None:
    """The student without its adapter judges what the student says with it."""
    run = start(asking(objective={"teacher": "base", "supervised_weight": 0.3}))
    divergences = column(run, "train/losses/divergence")
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert divergences[-1] > 1e-5


def test_a_prompt_that_leaves_no_room_is_refused(asking: Asking) -> None:
    """With the key, before a weight is loaded."""
    with pytest.raises(FinetuneError, match=r"objective.on_policy.max_new_tokens is 255: together more than"):
        build_inputs(asking(drawing={"max_new_tokens": 255}))


ROWS = "objective: {kind: distill, teacher: base, on_policy: {fraction: 0.5}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{objective: {kind: distill, teacher: base, on_policy: {}}}", "objective.on_policy.fraction"),
        (
            "{objective: {kind: distill, teacher: base, on_policy: {fraction: 0}}}",
            "objective.on_policy.fraction",
        ),
        (
            "{objective: {kind: distill, teacher: base, on_policy: {fraction: 0.5, temperature: 0}}}",
            "objective.on_policy.temperature",
        ),
        (
            "{objective: {kind: distill, teacher: base, top_k: 8, on_policy: {fraction: 0.5}}}",
            "objective.on_policy  its answers aren't there before step 1",
        ),
        (f"{{{ROWS}, data: {{streaming: {{buffer_rows: 9}}}}, train: {{max_steps: 5}}}}", "data.streaming"),
        (f"{{{ROWS}, data: {{pack_length_tokens: 4096}}}}", "data.pack_length_tokens  objective.on_policy"),
        (f"{{{ROWS}, data: {{over_length: split}}}}", "data.over_length  objective.on_policy"),
        (
            f"{{{ROWS}, data: {{train: [{{path: a.txt, format: text}}]}}}}",
            "data.train.0.format  objective.on_policy asks prompts",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(text: str, message: str) -> None:
    """By the recipe's rules, with the key."""
    assert any(message in problem for problem in found(text)), found(text)

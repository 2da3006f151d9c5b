"""What is in a checkpoint: no more than is trained, and nothing strange is resumed from."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from finetune.errors import CheckpointError
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training import build, run
from finetune.training.checkpoints.contents import check_fit
from finetune.training.checkpoints.store import MARKER, check_checkpoint, mark_complete
from finetune.training.inputs import build_inputs
from finetune.training.trainer import ExactTrainer
from tests.support.messages import hearing
from tests.support.processes import EXACT, adapter_of, assert_equal, start, trainer_of
from tests.support.recipes import MakeRecipe

NEW_TOKENS = ["<order>", "<end of order>"]


Finished = dict[str, tuple[RunFolder, ExactTrainer]]


@pytest.fixture(scope="module")
def finished() -> Finished:
    """Runs that several tests copy, and a trainer of each."""
    return {}


def run_of(
    kind: str, make_recipe: MakeRecipe, finished: Finished, folder: Path
) -> tuple[RunFolder, ExactTrainer]:
    """A copy of a finished run of 4 steps with checkpoints after 2 and 4, as if it had been killed at its
    end."""
    if kind not in finished:
        streaming = (
            {"streaming": {"buffer_rows": 16}, "evaluation": None}
            if kind == "stream"
            else {"evaluation": None}
        )
        train = EXACT | {"max_steps": 4, "save_every": 2, "rehearsal": False}
        recipe = make_recipe(adapter={"rank": 4, "dropout": 0.1}, train=train, data=streaming)
        if kind == "full":
            recipe = recipe.model_copy(
                update={"adapter": type(recipe.adapter).model_validate({"method": "full"})}
            )
        finished[kind] = start(recipe), trainer_of(recipe, folder)
    original, trainer = finished[kind]
    copied = RunFolder(Path(shutil.copytree(original.path, folder / "copied")))
    copied.write_summary({"status": "running"})
    return copied, trainer


def resume(folder: RunFolder) -> list[str]:
    said: list[str] = []
    with hearing(said.append):
        run.resume(folder.path, recipe=None)
    return said


class Evil:
    """A pickle of this makes a file where it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {Path('evil').absolute()}",)


Damage = Callable[[Path], None]


def saved(value: object) -> Damage:
    return lambda path: torch.save(value, path)


def changed(change: Callable[[Any], Any]) -> Damage:
    def damage(path: Path) -> None:
        held = (
            json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=False)
        )
        held = change(held) or held
        path.write_text(json.dumps(held)) if path.suffix == ".json" else torch.save(held, path)

    return damage


def set_to(**values: object) -> Damage:
    return changed(lambda held: held | values)


def without(name: str) -> Damage:
    return changed(lambda held: {key: value for key, value in held.items() if key != name})


def of_one_group_less(held: Any) -> None:
    held["param_groups"][0]["params"].pop()


def of_another_shape(held: Any) -> None:
    held["state"][0]["exp_avg"] = torch.zeros(1)


def of_no_such_weight(held: Any) -> None:
    held["state"][10**6] = held["state"][0]


def renamed(path: Path) -> None:
    save_file({f"other.{name}": weight for name, weight in load_file(path).items()}, path)


def flattened(path: Path) -> None:
    save_file({name: weight.flatten() for name, weight in load_file(path).items()}, path)


DAMAGES: dict[str, tuple[str, Damage]] = {
    **{
        f"{name} {how}": (name, damage)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        for how, damage in {
            "empty": lambda path: path.write_bytes(b""),
            "noise": lambda path: path.write_bytes(os.urandom(500)),
            "text": lambda path: path.write_text("hello"),
            "absent": lambda path: path.unlink(),
            "evil": saved(Evil()),
            "a list": saved([1, 2]),
            "None": saved(None),
            "a tensor": saved(torch.zeros(3)),
            "an empty dict": saved({}),
            "other values": saved(
                {"python": 1, "numpy": 2, "cpu": 3, "last_epoch": "x", "base_lrs": [], "param_groups": 7}
            ),
        }.items()
    },
    **{
        f"{name} {how}": (name, damage)
        for name in ("trainer_state.json", "counters.json")
        for how, damage in {
            "empty": lambda path: path.write_text(""),
            "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
            "torn": lambda path: path.write_text(path.read_text()[:40]),
            "a list": lambda path: path.write_text("[]"),
            "null": lambda path: path.write_text("null"),
            "an empty mapping": lambda path: path.write_text("{}"),
            "deep": lambda path: path.write_text("[" * 100_000),
            "absent": lambda path: path.unlink(),
        }.items()
    },
    "groups": ("optimizer.pt", saved({"state": {}, "param_groups": []})),
    "another model's optimizer": ("optimizer.pt", changed(of_one_group_less)),
    "another shape": ("optimizer.pt", changed(of_another_shape)),
    "a weight too many": ("optimizer.pt", changed(of_no_such_weight)),
    "no step": ("trainer_state.json", without("global_step")),
    "another step": ("trainer_state.json", set_to(global_step=2)),
    "a step that is no number": ("trainer_state.json", set_to(global_step="four")),
    "a negative step": ("trainer_state.json", set_to(global_step=-4)),
    "a log of words": ("trainer_state.json", set_to(log_history=[{"step": 1, "loss": "low"}])),
    "a log without steps": ("trainer_state.json", set_to(log_history=[{"loss": 1.0}])),
    "a log that is none": ("trainer_state.json", set_to(log_history={"loss": 1})),
    "unknown keys": ("trainer_state.json", set_to(surprise=1)),
    "work in words": ("trainer_state.json", set_to(total_flos="many")),
    "no tokens": ("counters.json", without("tokens")),
    "negative tokens": ("counters.json", set_to(tokens=-1)),
    "endless seconds": ("counters.json", set_to(seconds=float("inf"))),
    "a strange feed": ("counters.json", set_to(feed={"row": 1})),
    "a feed in words": ("counters.json", set_to(feed="here")),
    "weights of other names": ("adapter_model.safetensors", renamed),
    "weights of other shapes": ("adapter_model.safetensors", flattened),
    "weights that are none": ("adapter_model.safetensors", lambda path: path.write_bytes(b"\xff" * 100)),
    "no weights": ("adapter_model.safetensors", lambda path: path.unlink()),
}


def spoil(checkpoint: Path, name: str) -> None:
    """Damage a file, and let the marker have its hash."""
    file, damage = DAMAGES[name]
    damage(checkpoint / file)
    (checkpoint / MARKER).unlink()
    mark_complete(checkpoint)


def check(checkpoint: Path, trainer: ExactTrainer) -> None:
    """What resuming looks at."""
    check_checkpoint(checkpoint)
    check_fit(checkpoint, trainer)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_strange_file_is_told(
    name: str, make_recipe: MakeRecipe, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose hash is right and whose content isn't: the checkpoint is refused by its name, and no code
    in it runs."""
    monkeypatch.chdir(tmp_path)
    folder, trainer = run_of("lora", make_recipe, finished, tmp_path)
    checkpoint = folder.checkpoints / "checkpoint-4"
    check(checkpoint, trainer)
    spoil(checkpoint, name)
    with pytest.raises(CheckpointError, match=r"checkpoint-4.* can't be resumed from: \S") as caught:
        check(checkpoint, trainer)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt evil",
        "scheduler.pt a list",
        "rng_state.pth noise",
        "another shape",
        "weights of other names",
        "a log of words",
    ],
)
def test_a_strange_file_is_never_resumed_from(
    name: str, make_recipe: MakeRecipe, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a strange file in the last checkpoint the run goes on from the one before, and ends as it did;
    with one in each, it is refused in one message.
    """
    monkeypatch.chdir(tmp_path)
    folder, _ = run_of("lora", make_recipe, finished, tmp_path)
    whole = adapter_of(folder)
    last, before = (folder.checkpoints / f"checkpoint-{step}" for step in (4, 2))
    spoil(last, name)
    said = resume(folder)
    (warning,) = (line for line in said if line.startswith("warning: ") and "Looking for an earlier" in line)
    assert f"{last}" in warning
    assert "resuming from checkpoint-2" in said
    assert_equal(adapter_of(folder), whole)
    folder.write_summary({"status": "running"})
    shutil.rmtree(last)
    spoil(before, name)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2.* can't be resumed from: .*No other checkpoint is left"
    ):
        resume(folder)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", ["full", "stream"])
def test_what_was_written_is_resumed_from(
    kind: str, make_recipe: MakeRecipe, finished: Finished, tmp_path: Path
) -> None:
    """A whole checkpoint of full fine-tuning, and of a stream, is taken: nothing in it is strange."""
    folder, _ = run_of(kind, make_recipe, finished, tmp_path)
    said = resume(folder)
    assert "resuming from checkpoint-4" in said
    assert not [line for line in said if line.startswith("warning")]


def with_new_tokens(make_recipe: MakeRecipe) -> Recipe:
    """4 steps with dropout, and checkpoints after 2 and 4."""
    return make_recipe(
        model={"base": str(make_recipe().model.base), "new_tokens": NEW_TOKENS},
        adapter={"rank": 4, "dropout": 0.1},
        train=EXACT | {"max_steps": 4, "save_every": 2, "rehearsal": False},
    )


def test_a_checkpoint_of_new_tokens_holds_what_is_trained(
    make_recipe: MakeRecipe, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """With model.new_tokens no checkpoint has the embedding or the head; resumed, with dropout, the result is
    the same."""
    recipe = with_new_tokens(make_recipe)
    folder = start(recipe)
    whole = adapter_of(folder)
    last = folder.checkpoints / "checkpoint-4"
    names = load_file(last / "adapter_model.safetensors").keys()
    assert names == whole.keys()
    assert [name for name in names if "token_adapter" in name]
    assert not [name for name in names if "base_layer" in name]
    assert not [one for one in recwarn if "save_embedding_layers" in str(one.message)]
    shutil.rmtree(last)
    folder.write_summary({"status": "running"})
    assert "resuming from checkpoint-2" in resume(folder)
    assert_equal(adapter_of(folder), whole)


def test_a_checkpoint_that_has_the_embedding_still_loads(make_recipe: MakeRecipe) -> None:
    """One of an earlier version, which held the whole embedding beside the adapter, is resumed from to the
    same result."""
    recipe = with_new_tokens(make_recipe)
    folder = start(recipe)
    whole = adapter_of(folder)
    shutil.rmtree(folder.checkpoints / "checkpoint-4")
    checkpoint = folder.checkpoints / "checkpoint-2"
    inputs = build_inputs(recipe)
    model = build.build_model(recipe, inputs)
    model.load_adapter(str(checkpoint), "default", is_trainable=True)
    every = get_peft_model_state_dict(model, save_embedding_layers=True)
    assert (
        len(
            [name for name in every if "base_layer.weight" in name and ("embed" in name or "lm_head" in name)]
        )
        == 2
    )
    save_file(
        {name: weight.contiguous() for name, weight in every.items()},
        checkpoint / "adapter_model.safetensors",
    )
    (checkpoint / MARKER).unlink()
    mark_complete(checkpoint)
    folder.write_summary({"status": "running"})
    assert "resuming from checkpoint-2" in resume(folder)
    assert_equal(adapter_of(folder), whole)
    assert len(PreTrainedTokenizerFast.from_pretrained(folder.adapter)) == len(inputs.tokenizer)

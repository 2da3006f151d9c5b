"""A finished run's result, trained further: by the command that the message names, as it is printed."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from finetune.cli.app import run as run_command
from finetune.errors import CheckpointError, ModelError, RecipeError
from finetune.models.adapters.adapter import attach
from finetune.recipe.load import load_recipe
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.shipped import shipped_recipes
from finetune.runs.folder import RunFolder
from finetune.runs.further import command_to_train_further
from finetune.training import build, run
from finetune.training.inputs import build_inputs
from tests.support.processes import start
from tests.support.recipes import MakeRecipe

SMALLER = {"rank_pattern": {"q_proj": 2, "k_proj": 3}}
"""Ranks that weights don't have."""
SHORT = {
    "micro_batch_size": 4,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "max_steps": 2,
    "rehearsal": False,
}
NEW = ["<order>"]

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": {"method": "lora", "rank": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}},
    "dora": {"adapter": {"method": "lora", "rank": 4, "use_dora": True, "init": "gaussian"}},
    "saved modules": {"adapter": {"method": "lora", "rank": 4, "modules_to_save": ["lm_head"]}},
    "qlora": {"adapter": {"method": "qlora", "rank": 4}},
    "new tokens": {"adapter": {"method": "lora", "rank": 4}, "new_tokens": NEW},
    "new tokens and all others": {
        "adapter": {"method": "lora", "rank": 4, "modules_to_save": ["embed_tokens", "lm_head"]},
        "new_tokens": NEW,
    },
    "int8": {"adapter": {"method": "qlora", "rank": 4, "quantization": "int8"}},
    "pissa": {"adapter": {"method": "lora", "rank": 4, "init": "pissa"}},
    "lora_ga": {"adapter": {"method": "lora", "rank": 4, "init": "lora_ga"}},
    "last layer": {"adapter": {"method": "lora", "rank": 4, "layers": "last 1"}},
    "scaled": {"adapter": {"method": "lora", "rank": 4}, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "full": {"adapter": {"method": "full"}},
    "full with new tokens": {
        "adapter": {"method": "full"}, "new_tokens": NEW, "rope_scaling": {"type": "yarn", "factor": 2.0},
    },
    "a head": {"adapter": {"method": "lora", "rank": 4}, "head": {"labels": ["blue", "lamp"]}},
    "a head, full": {"adapter": {"method": "full"}, "head": {"labels": ["blue", "lamp"]}},
}  # fmt: skip


Finetune = Callable[[list[str]], int]


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch) -> Finetune:
    """finetune(words) -> the exit code of a command, in this process."""

    def call(words: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", words)
        return run_command()

    return call


def recipe_of(kind: str, make_recipe: MakeRecipe, folder: Path) -> Recipe:
    plain = make_recipe(train=SHORT)
    options = {name: value for name, value in KINDS[kind].items() if name != "adapter"}
    tree = plain.model_dump(mode="json", exclude_unset=True) | {"adapter": KINDS[kind]["adapter"]}
    tree["model"] |= options
    if "head" in options:
        rows = folder / "labels.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"text": "say " * n, "label": ("blue", "lamp")[n % 2]}) + "\n"
                for n in range(1, 21)
            )
        )
        tree["data"]["train"] = [{"path": str(rows), "format": "classification"}]
    return Recipe.model_validate(tree)


def trained(folder: RunFolder) -> dict[str, torch.Tensor]:
    path = folder.adapter / "adapter_model.safetensors"
    return load_file(path if path.is_file() else folder.model / "model.safetensors")


def command_of(folder: RunFolder) -> list[str]:
    """The words of the command that resuming the finished run prints."""
    with pytest.raises(CheckpointError, match="is finished") as caught:
        run.resume(folder.path, recipe=None)
    return shlex.split(str(caught.value).splitlines()[-1])


QUICK = ("lora", "new tokens", "full with new tokens", "a head")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
)
def test_the_printed_command_trains_the_result_further(
    kind: str, make_recipe: MakeRecipe, tmp_path: Path, finetune: Finetune
) -> None:
    """Pasted, it trains a new run: its start is, weight for weight, the finished one's result, and it takes
    as many steps."""
    first = start(recipe_of(kind, make_recipe, tmp_path))
    words = command_of(first)
    assert words[:2] == ["finetune", "train"]
    loaded = load_recipe(words[2], words[3:])
    inputs = build_inputs(loaded.recipe)
    model = build.build_model(loaded.recipe, inputs)
    held = (
        get_peft_model_state_dict(model, save_embedding_layers=False)
        if isinstance(model, PeftModel)
        else model.state_dict()
    )
    for name, weight in trained(first).items():
        assert torch.equal(held[name].to(weight.dtype), weight), name
    assert finetune(words) == 0
    second = RunFolder(first.path.with_name("run-002"))
    summary = second.read_summary()
    assert (summary["status"], summary["steps"], summary["weights_changed"]) == ("finished", 2, True)
    before = first.read_summary()
    assert summary["evaluation_loss_before"] == pytest.approx(before["evaluation_loss"], rel=1e-5)
    assert summary["base"] == (
        before["base"] if KINDS[kind]["adapter"]["method"] != "full" else str(first.model)
    )


def test_the_command_has_what_was_launched(
    make_recipe: MakeRecipe, finetune: Finetune, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ways of sharding, allowed code and a path with blanks are in the command; overrides take the place of
    the steps."""
    folder = start(make_recipe(train=SHORT), name="a b")
    lock = read_lock(folder.lock_path)
    launched = "finetune train r.yaml --launch ddp --processes 2 --json --allow-code=abc"
    words = shlex.split(
        command_to_train_further(folder, type(lock)(lock.recipe, launched, ""), ("train.max_steps=9",))
    )
    assert words[2] == str(folder.lock_path)
    assert " " in words[2]
    assert words[-6:] == ["train.max_steps=9", "--launch", "ddp", "--processes", "2", "--allow-code=abc"]
    capsys.readouterr()
    assert finetune(["finetune", "train", "train.max_steps=9", "--resume", str(folder.path)]) == 2
    again = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert again[3:] == [f"adapter.continue_from={folder.adapter}", "train.max_steps=9"]
    load_recipe(again[2], again[3:])


def test_a_runs_lock_is_a_recipe(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Its recipe, with overrides on top, or extended by another; its runs are called as the run."""
    recipe = make_recipe(train=SHORT)
    folder = start(recipe, name="orders")
    loaded = load_recipe(folder.lock_path, ["train.learning_rate=3e-4"])
    assert loaded.recipe == recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"learning_rate": 3e-4})}
    )
    assert loaded.name == "orders"
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {folder.lock_path}\ntrain: {{max_steps: 7}}\n")
    assert load_recipe(child).recipe.train.max_steps == 7
    folder.lock_path.write_text(
        folder.lock_path.read_text().replace("learning_rate: 0.01", "learning_rat: 0.01")
    )
    with pytest.raises(RecipeError, match="learning_rate"):
        load_recipe(folder.lock_path)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_the_lock_of_each_shipped_recipe_is_that_recipe(name: str, tmp_path: Path) -> None:
    """What a lock says of a recipe, defaults and all, is a recipe that no rule is against, and the same
    one."""
    recipe = load_recipe(name).recipe
    path = tmp_path / "run-001" / "recipe.lock.yaml"
    path.parent.mkdir()
    path.write_text(Lock(recipe, "finetune train 'open", "").to_yaml())
    loaded = load_recipe(path)
    assert (loaded.recipe, loaded.name) == (recipe, "run")
    assert command_to_train_further(RunFolder(path.parent), read_lock(path)).startswith(
        f"finetune train {path} "
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.3}, "was trained with lora_dropout 0.1, the recipe asks for 0.3"),
        (
            {"modules_to_save": ["lm_head"]},
            r"was trained with modules_to_save None, the recipe asks for \['lm_head'\]",
        ),
    ],
)
def test_another_adapter_than_the_continued_one_is_refused(
    make_recipe: MakeRecipe, changes: dict[str, Any], message: str
) -> None:
    """Dropout, modules to save and new tokens may be written as the adapter has them, and not otherwise."""
    first = start(make_recipe(adapter={"rank": 4, "dropout": 0.1}, train=SHORT))
    continued = {"rank": 4, "dropout": 0.1, "continue_from": str(first.adapter)}
    same = make_recipe(adapter=continued, train=SHORT)
    inputs = build_inputs(same)
    build.build_model(same, inputs)
    with pytest.raises(ModelError, match=message):
        build.build_model(make_recipe(adapter=continued | changes, train=SHORT), inputs)
    with pytest.raises(ModelError, match=r"trains 0 new tokens .* model.new_tokens has 1 \(\[5\]\)"):
        attach(build.load_model(inputs.base, dtype=torch.float32), same.adapter, [5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOKR"}, "is of type LOKR; expected LORA"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]"),
        ({"trainable_token_indices": "None"}, "trainable_token_indices"),
        ({"modules_to_save": 3}, "modules_to_save"),
        ({"r": 2}, "was trained with r 2"),
        ({"rank_pattern": {"q_proj": 2}}, "was trained with rank_pattern"),
        (SMALLER, "does not fit this base"),
        ({"no_such_key": 1}, "which peft .* doesn't know"),
    ],
)
def test_a_continued_adapter_that_cant_be_used_is_refused_before_the_data(
    make_recipe: MakeRecipe, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values, its kind, and whether its weights fit the base are known from files; no row is read for
    them."""
    first = start(make_recipe(adapter={"rank": 4}, train=SHORT))
    path = first.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    monkeypatch.setattr(
        "finetune.training.inputs.prepare_data", lambda *_, **__: pytest.fail("the data were prepared")
    )
    asked = {"rank": 4, "continue_from": str(first.adapter)} | (SMALLER if changes == SMALLER else {})
    with pytest.raises(ModelError, match=message):
        build_inputs(make_recipe(adapter=asked, train=SHORT))

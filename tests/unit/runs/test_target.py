"""What a user may name where a model is wanted."""

import json
from pathlib import Path

import pytest

from finetune.errors import CheckpointError, ModelError
from finetune.models.bases.locate import resolve_base
from finetune.recipe.lock import Lock
from finetune.recipe.schema import Recipe
from finetune.runs.target import resolve_target


def write_run(folder: Path, base: dict[str, str]) -> Path:
    recipe = Recipe.model_validate(
        {"model": {"base": "owner/name"}, "data": {"train": [{"path": "/rows.json", "format": "alpaca"}]}}
    )
    folder.mkdir()
    (folder / "adapter").mkdir()
    lock = Lock(recipe=recipe, command="finetune train", created="2026-01-01", base=base)
    (folder / "recipe.lock.yaml").write_text(lock.to_yaml())
    return folder


def test_a_run_names_the_commit_that_was_trained_on(tmp_path: Path) -> None:
    """A run on a hub base goes back to the lock's commit, wherever the branch has moved."""
    run = write_run(tmp_path / "run", {"kind": "hub", "name": "owner/name", "commit": "abc123"})
    assert resolve_target(str(run)).model.revision == "abc123"
    assert resolve_target(str(run / "adapter")).adapter == run / "adapter"


def test_an_adapter_folder_names_base_and_revision(tmp_path: Path, tiny_base: Path) -> None:
    """A plain peft folder is resolved by its own config: a hub id with its revision, or a folder."""
    (tmp_path / "adapter_model.safetensors").touch()
    for base, revision in (("owner/name", "abc"), (str(tiny_base), None)):
        config = {"peft_type": "LORA", "base_model_name_or_path": base, "revision": revision}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        target = resolve_target(str(tmp_path))
        assert (target.model.base, target.model.revision) == (base, revision)


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": "LORA"}'])
def test_a_damaged_adapter_config_is_one_message(tmp_path: Path, text: str) -> None:
    """Broken JSON and a missing base are named with their file."""
    (tmp_path / "adapter_config.json").write_text(text)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        resolve_target(str(tmp_path))


def test_a_run_without_a_result_and_a_text_that_is_nothing_are_refused(tmp_path: Path) -> None:
    """A run that isn't finished says how to finish it; another text says what was expected."""
    run = write_run(tmp_path / "run", {})
    (run / "adapter").rmdir()
    with pytest.raises(CheckpointError, match="--resume"):
        resolve_target(str(run))
    with pytest.raises(ModelError, match="expected a run folder"):
        resolve_target(str(tmp_path / "gone"))


def test_a_folder_of_adapters_names_them(tmp_path: Path) -> None:
    """As peft saves an adapter that has a name, and other trainers their checkpoints: one folder down."""
    for name in ("mine", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="It holds the adapters checkpoint-10, mine: name one"):
        resolve_target(str(tmp_path))


@pytest.mark.parametrize("own_config", [False, True])
def test_an_adapter_in_the_place_of_a_base_says_what_to_do(
    tmp_path: Path, tiny_base: Path, own_config: bool
) -> None:
    """An adapter that was trained on another, not merged one; some trainers save the base's config.json
    beside it."""
    first, second = tmp_path / "first one", tmp_path / "second"
    for folder, base in ((first, tiny_base), (second, first)):
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch()
        config = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    if own_config:
        (first / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    with pytest.raises(
        ModelError, match=r"is an adapter, which is no base.*finetune merge '.*/first one' --output DIR"
    ):
        resolve_base(resolve_target(str(second)).model)

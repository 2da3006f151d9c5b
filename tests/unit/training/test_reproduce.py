"""A run that is run again from its lock, and what a run's files never hold."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.models.device import processor_model
from finetune.recipe.lock import START_HASH, Lock, read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training.provenance import inexact_because
from finetune.training.reproduce import differences, reproduce, started_alike
from tests.support.cli import FinetuneHere, run_process
from tests.support.messages import hearing
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    """A few steps on the tiny base."""
    return make_recipe(train=EXACT | {"max_steps": 4})


@pytest.fixture
def finished(recipe: Recipe) -> RunFolder:
    """A run that came to its end."""
    return start(recipe, "first")


def again(run: RunFolder, *options: str) -> subprocess.CompletedProcess[str]:
    """`finetune runs reproduce` in a process of its own."""
    return run_process("runs", "reproduce", str(run.path), *options)


def test_a_run_is_reproduced_bit_for_bit(finished: RunFolder) -> None:
    """From its lock, in another process and a new folder: every loss and every weight."""
    done = again(finished, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["same_weights"] is True
    assert (report["loss_distance"], report["weights_distance"], report["differs"]) == (0, 0, [])
    new = RunFolder(Path(report["new"]))
    assert new.path.parent == finished.path.parent
    assert new.path != finished.path
    lock = read_lock(new.lock_path)
    assert lock.command == f"finetune runs reproduce {finished.path}"
    assert lock.final["evaluation_loss"] == finished.read_summary()["evaluation_loss"]


def test_what_changed_is_refused_until_it_is_named(finished: RunFolder, finetune_here: FinetuneHere) -> None:
    """Other data and other packages are each refused with what to type; then the report says what differs."""
    lock = read_lock(finished.lock_path)
    path = Path(str(lock.recipe.data.train[0].path))
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows[1:], rows[0]]))
    text = finished.lock_path.read_text()
    finished.lock_path.write_text(text.replace(f"torch: {lock.versions['torch']}", "torch: 2.0.0"))
    before = set(finished.path.parent.iterdir())
    refused = finetune_here("runs", "reproduce", str(finished.path), code=2)
    assert "versions: torch was 2.0.0" in refused.stderr
    assert "continue with --despite data --despite versions" in refused.stderr
    assert set(finished.path.parent.iterdir()) == before
    done = again(finished, "--despite", "data", "--despite", "versions")
    assert done.returncode == 0, done.stderr
    assert "not the same: data" in done.stdout
    assert "weights differ by" in done.stdout
    path.unlink()
    named = ("--despite", "data", "--despite", "versions")
    gone = finetune_here("runs", "reproduce", str(finished.path), *named, code=2)
    assert str(path) in gone.stderr


def test_a_run_without_a_result_can_not_be_reproduced(finished: RunFolder) -> None:
    """There is nothing to compare with."""
    finished.write_summary(finished.read_summary() | {"status": "stopped"})
    with pytest.raises(CheckpointError, match="is not finished"):
        reproduce(finished, read_lock(finished.lock_path), despite=frozenset(), folder=None)
    with pytest.raises(CheckpointError, match="expected some of base, data, versions, code"):
        reproduce(finished, read_lock(finished.lock_path), despite=frozenset({"luck"}), folder=None)


def test_no_file_of_a_run_holds_a_secret(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of the environment, one in the recipe, and a presigned URL in the command: no file holds any of
    them."""
    secrets = {
        "HF_TOKEN": f"hf_{'Zx9' * 12}",
        "WANDB_API_KEY": "0f" * 20,
        "AWS_SECRET_ACCESS_KEY": "kq/Q" * 10,
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    signature = "d34db33f" * 4
    command = f"finetune train r.yaml data.x=https://bucket.example/rows.jsonl?X-Amz-Signature={signature}"
    tracking = recipe.tracking.model_copy(update={"project": secrets["HF_TOKEN"]})
    said: list[str] = []
    from finetune.training import run

    with hearing(said.append):
        summary = run.start(
            recipe.model_copy(update={"tracking": tracking}), name="secret", command=command
        ).summary
    folder = Path(recipe.output.folder) / summary["name"]
    held = [path for path in folder.rglob("*") if path.is_file()]
    assert len(held) > 10
    for path in held:
        content = path.read_bytes()
        for secret in (*secrets.values(), signature):
            assert secret.encode() not in content, path
    assert "https://bucket.example/rows.jsonl?<query>" in (folder / "recipe.lock.yaml").read_text()
    assert any("the recipe or the command contains a secret" in line for line in said)


@pytest.mark.parametrize(("device", "told"), [("cuda", True), ("cpu", False)])
def test_a_gpus_sums_are_named_as_what_may_differ(finished: RunFolder, device: str, told: bool) -> None:
    """So that other last digits are no failure, unless train.deterministic asked for the same bits."""
    lock = read_lock(finished.lock_path)
    lock = replace(lock, device=lock.device | {"type": device})
    assert any("train.deterministic" in line for line in differences(lock, lock)) == told
    train = lock.recipe.train.model_copy(update={"deterministic": True})
    lock = replace(lock, recipe=lock.recipe.model_copy(update={"train": train}))
    assert not differences(lock, lock)


def test_another_model_of_a_processor_is_named(finished: RunFolder) -> None:
    """Virtual machines call several by one name, and they round otherwise. An earlier version's lock doesn't
    say, which is told here, and isn't taken for another processor where a run is resumed."""
    lock = read_lock(finished.lock_path)
    assert lock.device["model"] == processor_model()
    other = replace(lock, device=lock.device | {"model": "cpu family 6, model 1"})
    assert [line.split(" was ")[0] for line in differences(other, lock)] == ["device: model"]
    assert [line.split(":")[0] for line in inexact_because(other, lock)] == ["device model"]
    facts = {name: value for name, value in lock.device.items() if name != "model"}
    earlier = replace(lock, device=facts)
    assert any("doesn't say which model" in line for line in differences(earlier, lock))
    assert inexact_because(earlier, lock) == []


@pytest.mark.parametrize(
    ("now", "alike"), [({START_HASH: "b"}, False), ({START_HASH: "a"}, True), ({}, True)]
)
def test_a_lock_that_says_no_start_is_no_other_start(
    make_recipe: MakeRecipe, now: dict[str, str], alike: bool
) -> None:
    """An earlier version's locks don't say where an adapter started."""
    lock = Lock(make_recipe(), "", "")
    assert started_alike(replace(lock, final={START_HASH: "a"}), replace(lock, final=now)) is alike

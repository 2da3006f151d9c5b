"""Trackers and samples in real runs."""

import json
import os
import shutil
import stat
import sys
import time
from pathlib import Path

import pytest

from finetune.errors import RecipeError, TrackerError
from finetune.recipe.lock import read_lock
from finetune.runs.folder import RunFolder
from finetune.training import run
from tests.support.processes import EXACT, adapter_of, assert_equal, launch, start, wait_for
from tests.support.recipes import MakeRecipe

SAMPLES = {"prompts": ["Say blue.", "Count to two."], "every_steps": 2, "max_new_tokens": 5}
STEPS = EXACT | {"max_steps": 5}


def offline_file(folder: RunFolder, *parts: bytes) -> bytes:
    """wandb's offline file once it has these parts: its own process writes it, on a busy machine a moment
    after the end."""
    deadline = time.monotonic() + 30
    while True:
        content = next(folder.path.rglob("*.wandb")).read_bytes()
        lacking = [part for part in parts if part not in content]
        if not lacking:
            return content
        assert time.monotonic() < deadline, lacking
        time.sleep(0.1)


def test_samples_are_written_and_change_nothing(make_recipe: MakeRecipe) -> None:
    """Before the first step, every second one, and at the end; with dropout the adapter is bit for bit the
    one without."""
    adapter = {"rank": 4, "dropout": 0.1}
    without = start(make_recipe(train=STEPS, adapter=adapter))
    written = start(
        make_recipe(train=STEPS, adapter=adapter, tracking={"tracker": "none", "samples": SAMPLES})
    )
    assert_equal(adapter_of(without), adapter_of(written))
    lines = [json.loads(line) for line in written.samples_path.read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [
        (step, prompt)
        for step in (0, 2, 4, 5)
        for prompt in SAMPLES["prompts"]  # type: ignore[attr-defined]
    ]
    assert lines[0]["answer"] != lines[-2]["answer"]
    assert "sample after step 5" in written.log_path.read_text()
    assert lines[0]["cut"] == "at max_new_tokens (5)"
    assert " (cut at max_new_tokens (5))" in written.log_path.read_text()


@pytest.mark.parametrize("plain", [True, False])
def test_samples_are_asked_as_the_rows_are_written(
    make_recipe: MakeRecipe, tmp_path: Path, plain: bool
) -> None:
    """Plain texts plainly, also on a base with a chat template: a run that knows its row by heart says it."""
    row = {"prompt": "The cat is called", "completion": " Tom."}
    path = tmp_path / "rows.jsonl"
    path.write_text(8 * (json.dumps(row) + "\n"))
    template = {"prompt": "{{ prompt }}", "completion": "{{ completion }}", "chat": not plain}
    samples = {"prompts": [row["prompt"]], "every_steps": 40, "max_new_tokens": 8}
    recipe = make_recipe(
        adapter={"method": "full", "rank": 16},
        data={"train": [{"path": str(path), "format": "template", "template": template}], "evaluation": None},
        train=STEPS | {"max_steps": 40, "learning_rate": 5e-3},
        tracking={"tracker": "none", "samples": samples},
    )
    lines = [json.loads(line) for line in start(recipe).samples_path.read_text().splitlines()]
    assert lines[0]["answer"].strip() != "Tom."
    assert lines[-1]["answer"].strip() == "Tom."
    assert "cut" not in lines[-1]


def test_tensorboard_has_transformers_names(make_recipe: MakeRecipe) -> None:
    """A tracker that transformers drives gets its own names, read back with tensorboard's own reader."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is absent"
    )
    done = start(make_recipe(train=STEPS | {"log_every": 1}, tracking={"tracker": "tensorboard"}))
    events = accumulator.EventAccumulator(str(done.path / "tensorboard"))
    events.Reload()
    found = [(point.step, pytest.approx(point.value, rel=1e-5)) for point in events.Scalars("train/loss")]
    lines = [json.loads(line) for line in done.metrics_path.read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line] == found
    assert {"train/grad_norm", "train/learning_rate", "eval/loss"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("fails", [False, True])
def test_several_trackers_at_once(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """TensorBoard and wandb both have the losses; where the one fails, the other has them all the same."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is absent"
    )
    from transformers.integrations.integration_utils import TensorBoardCallback

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if fails:
        monkeypatch.setattr(TensorBoardCallback, "on_log", full)
    tracking = {"tracker": ["tensorboard", "wandb"], "tags": ["a-tag"]}
    done = start(make_recipe(train=STEPS | {"log_every": 1}, tracking=tracking))
    content = offline_file(done, b"a-tag", b"train/gradient_norm")
    assert content.count(b"train/gradient_norm") >= 5
    assert (
        done.log_path.read_text().count("the tracker tensorboard failed (OSError: No space left on device)")
        == fails
    )
    assert done.read_summary()["tracker"] == ["tensorboard", "wandb"]
    if not fails:
        events = accumulator.EventAccumulator(str(done.path / "tensorboard"))
        events.Reload()
        assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_tensorboard_has_the_metrics_of_the_result(make_recipe: MakeRecipe) -> None:
    """Measured after the last step, logged before the tracker's end."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is absent"
    )
    evaluate = {"metrics": ["bits_per_byte", "loss"]}
    steps = STEPS | {"save_every": 5}
    done = start(make_recipe(train=steps, evaluate=evaluate, tracking={"tracker": "tensorboard"}))
    events = accumulator.EventAccumulator(str(done.path / "tensorboard"))
    events.Reload()
    last = json.loads(done.metrics_path.read_text().splitlines()[-1])
    for name in ("final/bits_per_byte", "final/loss"):
        found = [(point.step, point.value) for point in events.Scalars(f"train/{name}")]
        assert found == [(last["step"], pytest.approx(last[name], rel=1e-6))]
    # Killed before its result was there, and finished: no step is left, and the result is logged all the
    # same.
    shutil.rmtree(done.path / "tensorboard")
    done.write_summary({"status": "running"})
    run.resume(done.path, recipe=None)
    events = accumulator.EventAccumulator(str(done.path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/final/loss")] == [last["step"]]


def test_a_tracker_whose_package_is_absent_is_refused(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message, before anything is trained, and no run folder left."""
    monkeypatch.setitem(sys.modules, "clearml", None)
    recipe = make_recipe(train=STEPS, tracking={"tracker": "clearml"})
    with pytest.raises(TrackerError, match=r"tracking\.tracker clearml could not start"):
        start(recipe)
    assert list(Path(recipe.output.folder).iterdir()) == []


def test_a_tracker_that_breaks_in_mid_run_stops_nothing(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training ends, metrics.jsonl has every step, and the log says once that the tracker failed."""
    pytest.importorskip("tensorboard", reason="tensorboard is absent")
    from transformers.integrations.integration_utils import TensorBoardCallback

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(TensorBoardCallback, "on_log", full)
    done = start(make_recipe(train=STEPS | {"log_every": 1}, tracking={"tracker": "tensorboard"}))
    assert done.read_summary()["status"] == "finished"
    assert (
        done.log_path.read_text().count("the tracker tensorboard failed (OSError: No space left on device)")
        == 1
    )
    assert sum("train/loss" in line for line in done.metrics_path.read_text().splitlines()) == 5


def test_a_wandb_run_has_its_tags_and_its_adapter(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group, tags, notes, samples and the adapter stand in wandb's offline files."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracking = {
        "tracker": "wandb",
        "group": "a-group",
        "tags": ["a-tag"],
        "notes": "why it ran",
        "upload_adapter": True,
    }
    done = start(make_recipe(train=STEPS, tracking=tracking | {"samples": SAMPLES}))
    offline_file(done, b"a-group", b"a-tag", b"why it ran", b"-adapter", b"samples.table.json")
    assert list(done.path.rglob("samples*.table.json"))


@pytest.mark.parametrize(
    ("tracking", "expected"),
    [
        ({"tracker": "trackio", "tags": ["x"]}, "for wandb and mlflow only; this one is trackio"),
        ({"tracker": "tensorboard", "group": "x"}, "for trackio, wandb, mlflow and opentelemetry only"),
        ({"tracker": "swanlab", "project": "x"}, "for trackio, wandb, mlflow and opentelemetry only"),
    ],
)
def test_what_a_tracker_lacks_is_refused(
    tracking: dict[str, object], expected: str, tiny_base: Path, tmp_path: Path
) -> None:
    """An option that can't be honoured is never ignored."""
    from finetune.recipe.load import load_recipe

    path = tmp_path / "r.yaml"
    (tmp_path / "rows.json").write_text("[]")
    lines = "\n".join(f"  {name}: {json.dumps(value)}" for name, value in tracking.items())
    data = f"data: {{train: [{{path: {tmp_path / 'rows.json'}, format: alpaca}}]}}"
    path.write_text(f"model: {{base: {tiny_base}}}\n{data}\ntracking:\n{lines}\n")
    with pytest.raises(RecipeError, match=expected):
        load_recipe(path)


@pytest.mark.long
def test_samples_survive_a_cut_line_and_an_early_end(make_recipe: MakeRecipe) -> None:
    """A last line that a kill cut short is dropped at a resume; the last texts are written wherever the end
    comes."""
    sections = {
        "train": STEPS | {"max_steps": 6, "save_every": 2},
        "tracking": {"tracker": "none", "samples": SAMPLES},
    }
    whole = start(make_recipe(**sections), "whole")
    process = launch(make_recipe(**sections))
    folder = RunFolder(whole.path.parent / "killed-001")
    wait_for(folder.checkpoints / "checkpoint-2" / "complete.json", process)
    process.kill()
    process.wait()
    content = folder.samples_path.read_text()
    folder.samples_path.write_text(content[:-15])
    run.resume(folder.path, recipe=None)
    assert folder.samples_path.read_text() == whole.samples_path.read_text()
    assert_equal(adapter_of(folder), adapter_of(whole))
    stopping = {
        "evaluate_every": 1,
        "early_stopping": {"patience_evaluations": 1, "minimum_improvement": 100.0},
    }
    early = start(
        make_recipe(train=STEPS | stopping | {"max_steps": 30}, tracking=sections["tracking"]), "early"
    )
    steps = [json.loads(line)["step"] for line in early.samples_path.read_text().splitlines()]
    assert steps[-1] == early.read_summary()["steps"] < 30


def test_no_secret_reaches_a_tracker(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens in tags, notes, group and prompts are left out of wandb's files as well; the lock can still be
    read."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    token = f"hf_{'Zx9' * 12}"
    samples = {"prompts": [f"Use {token}", 'Read "https://example.com/a?b=1" now']}
    tracking = {
        "tracker": "wandb",
        "group": token,
        "tags": [token],
        "notes": f"with {token}",
        "samples": samples,
    }
    done = start(make_recipe(train=STEPS, tracking=tracking))
    for path in done.path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
    assert read_lock(done.lock_path).recipe.tracking.tags == ("<token>",)


def test_a_text_that_looks_like_a_path_keeps_no_secret(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that begins with a slash is a text: no file of the run, none of Trackio's and no line that is
    printed holds it.

    Nor does the answer, where the model repeats it; the recipe's paths stay, for the run is resumed by them.
    """
    from finetune.generation.generate import Generated
    from finetune.training.callbacks import samples

    secret, token = "supersecretvalue123", f"hf_{'Zx9' * 12}"
    monkeypatch.setenv("MY_TOKEN", secret)
    prompts = [f"/{secret} {token}", f"/home/{secret}"]
    monkeypatch.setattr(
        samples, "generate", lambda *_, **__: [Generated(f"/{token}", None), Generated(f"~/{secret}", None)]
    )  # as a model that learned them
    recipe = make_recipe(
        train=STEPS, tracking={"tracker": "trackio", "samples": {"prompts": prompts, "max_new_tokens": 2}}
    )
    done = start(recipe)
    database = Path(os.environ["TRACKIO_DIR"])
    held = [path for folder in (done.path, database) for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in held)
    assert stat.S_IMODE(database.stat().st_mode) == 0o700
    for path in held:
        content = path.read_bytes()
        assert secret.encode() not in content, path
        assert token.encode() not in content, path
    assert [json.loads(line)["prompt"] for line in done.samples_path.read_text().splitlines()[:2]] == [
        "/<MY_TOKEN> <token>", "/home/<MY_TOKEN>"
    ]  # fmt: skip
    lock = read_lock(done.lock_path)
    assert lock.recipe.data.train == recipe.data.train
    assert lock.recipe.model == recipe.model

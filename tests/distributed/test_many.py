"""Several adapters of one base in two processes: each is what it is alone in two."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune
from finetune.recipe.lock import read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from tests.distributed.launches import difference
from tests.support.processes import adapter_of, assert_equal, start, wait_for
from tests.support.recipes import MakeRecipe

SGD: dict[str, Any] = {
    "optimizer": "sgd", "learning_rate": 0.5, "precision": "fp32", "max_steps": 6, "global_batch_size": 4,
    "micro_batch_size": 1,
}  # fmt: skip
SAVING: dict[str, Any] = SGD | {"optimizer": "adamw", "learning_rate": 1e-2, "max_steps": 24, "save_every": 4}


class Launcher:
    """`finetune VERB` on recipes, in two processes."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment, self.engine = folder, environment, "ddp"

    def start(self, verb: str, *words: str) -> subprocess.Popen[str]:
        """Begin."""
        return subprocess.Popen(
            [sys.executable, "-m", "finetune", verb, *words, "--launch", self.engine, "--processes", "2"],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, verb: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """To the end."""
        process = self.start(verb, *words)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == code, stdout + stderr
        assert "Traceback" not in stderr, stderr
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def write(self, name: str, recipe: Recipe) -> str:
        """A recipe's file, whose runs are in a folder of the same name."""
        placed = recipe.model_copy(
            update={"output": type(recipe.output)(folder=str(self.folder / f"of-{name}"))}
        )
        (self.folder / f"{name}.yaml").write_text(placed.model_dump_json(exclude_unset=True))
        return f"{name}.yaml"

    def run(self, name: str, number: int = 1) -> RunFolder:
        """One of a recipe's runs."""
        return RunFolder(self.folder / f"of-{name}" / f"{name}-{number:03}")


@pytest.fixture
def launcher(tmp_path: Path, environment: dict[str, str]) -> Launcher:
    """In the test's folder."""
    return Launcher(tmp_path, environment)


def test_each_adapter_is_what_it_is_alone(make_recipe: MakeRecipe, launcher: Launcher) -> None:
    """In one process, with accumulation; one leaves earlier, and has other targets and evaluations."""
    few = {"rank": 4, "target_modules": ["q_proj", "down_proj"]}
    recipes = {
        "first": make_recipe(train=SGD),
        "second": make_recipe(train=SGD | {"max_steps": 3, "evaluate_every": 1}, adapter=few),
    }
    said = launcher("train-many", *(launcher.write(*named) for named in recipes.items())).stdout
    assert "first: step 6/6" in said
    assert "second: step 3/3" in said
    assert said.count("finished") == 2
    for name, recipe in recipes.items():
        together, alone = launcher.run(name), start(recipe)
        assert difference(adapter_of(together), adapter_of(alone)) < 1e-5, name
        losses = [run.read_summary()["evaluation_loss"] for run in (together, alone)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_python_starts_processes_too(make_recipe: MakeRecipe, launcher: Launcher, tmp_path: Path) -> None:
    """Of variants, whose overrides no file has: the adapters of the command line; its words are no secret of the
    launch."""
    launcher.write("base", make_recipe(train=SGD | {"max_steps": 2}))
    variants: dict[str, dict[str, Any]] = {"plain": {}, "steep": {"train.learning_rate": 1.5}}
    (tmp_path / "variants.json").write_text(json.dumps(variants))
    launcher("train-many", "base.yaml", "--variants", "variants.json")
    found = finetune.train_many([tmp_path / "base.yaml"], variants=variants, launch="ddp", processes=2)
    assert {name: run.status for name, run in found.items()} == {"plain": "finished", "steep": "finished"}
    for name, run in found.items():
        by_words = RunFolder(launcher.folder / "of-base" / f"{name}-001")
        assert_equal(adapter_of(RunFolder(run.folder)), adapter_of(by_words))
        assert read_lock(by_words.lock_path).command.endswith("--launch ddp --processes 2")
        assert "--asked" not in read_lock(by_words.lock_path).command


@pytest.mark.long
def test_a_run_that_fails_leaves_the_others_alone(
    make_recipe: MakeRecipe, launcher: Launcher, tmp_path: Path
) -> None:
    """In both processes, and the other's bits are as if it had come to its end there."""
    trained = start(make_recipe(train=SGD | {"max_steps": 1}), "broken").adapter
    broken = shutil.copytree(trained, tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    wild = {name: weight * (1e30 if "lora_A" in name else 1) for name, weight in weights.items()}
    save_file(wild, broken / "adapter_model.safetensors", {"format": "pt"})
    launcher.write("steady", make_recipe(train=SGD))
    launcher.write("short", make_recipe(train=SGD | {"max_steps": 1}))
    launcher.write(
        "bad",
        make_recipe(train=SGD, adapter={"continue_from": str(broken)}, data={"evaluation": None}),
    )
    told = launcher("train-many", "steady.yaml", "bad.yaml", code=2)
    assert "at step 1; nothing was updated" in told.stdout + told.stderr
    assert launcher.run("bad").read_summary()["status"] == "failed"
    launcher("train-many", "steady.yaml", "short.yaml")
    assert_equal(adapter_of(launcher.run("steady")), adapter_of(launcher.run("steady", 2)))


@pytest.mark.long
def test_a_failure_of_one_process_ends_all_runs(
    make_recipe: MakeRecipe, launcher: Launcher, tmp_path: Path
) -> None:
    """The main process finds a run's lock held, and the other one waits for it in the midst of that run's
    start: both end, with the reason."""
    launcher.write("one", make_recipe(train=SAVING | {"max_steps": 4}))
    launcher.write("two", make_recipe(train=SAVING))
    launcher("train-many", "one.yaml", "two.yaml")
    run = launcher.run("two")
    run.write_summary({"status": "running"})
    shutil.rmtree(run.checkpoints / "checkpoint-24")
    with run.claimed():
        told = launcher("train-many", "one.yaml", "--resume", str(run.path), code=2)
    assert "is being trained by process" in told.stderr
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.long
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_runs_resume_together_bit_for_bit(
    make_recipe: MakeRecipe, launcher: Launcher, end: signal.Signals
) -> None:
    """The launcher killed, or told to stop, in the middle: both end in the uninterrupted adapters, dropout
    included."""
    for name, seed in (("one", 1), ("two", 2)):
        launcher.write(name, make_recipe(train=SAVING | {"seed": seed}, adapter={"dropout": 0.1}))
    launcher("train-many", "one.yaml", "two.yaml")
    process = launcher.start("train-many", "one.yaml", "two.yaml")
    runs = [launcher.run(name, 2) for name in ("one", "two")]
    wait_for(runs[0].checkpoints / "checkpoint-4" / "complete.json", process)
    process.send_signal(end)
    process.communicate(timeout=120)
    assert process.returncode == (75 if end == signal.SIGTERM else -signal.SIGKILL)
    assert not any(run.finished for run in runs)
    launcher("train-many", *(word for run in runs for word in ("--resume", str(run.path))))
    for name, run in zip(("one", "two"), runs, strict=True):
        assert_equal(adapter_of(run), adapter_of(launcher.run(name)))
        assert torch.tensor(json.loads(run.metrics_path.read_text().splitlines()[-1])["step"]) == 24


CHECKPOINTED: dict[str, Any] = {"train": {"activation_checkpointing": True}}
PREFERENCES: dict[str, Any] = {
    "objective": {"kind": "dpo"},
    "data": {
        "train": [{"path": "pairs.json", "format": "preference"}],
        "evaluation": {"rows": 2},
        "pack_length_tokens": None,
    },
}


@pytest.mark.parametrize(
    "section",
    [
        CHECKPOINTED,
        pytest.param({"adapter": {"method": "qlora"}}, marks=pytest.mark.long),
        pytest.param({"adapter": {"layers": "last 1", "target_modules": ["q_proj"]}}, marks=pytest.mark.long),
        pytest.param(PREFERENCES, marks=pytest.mark.long),
    ],
    ids=["checkpointed", "qlora", "last layer", "dpo"],
)
def test_a_base_that_is_shared_out_changes_no_bit(
    make_recipe: MakeRecipe, launcher: Launcher, section: dict[str, Any]
) -> None:
    """fsdp2 cuts up the base's layers, and each process has the adapters as with ddp: through evaluations
    with answers, with one that ends before the other."""
    pairs = [{"prompt": f"Say {one}.", "chosen": f"{one}!", "rejected": f"not {one}"} for one in range(24)]
    (launcher.folder / "pairs.json").write_text(json.dumps(pairs))
    train = SAVING | {"max_steps": 6, "evaluate_every": 3} | section.get("train", {})
    own = {name: part for name, part in section.items() if name != "train"}
    scored = {} if "objective" in own else {"evaluate": {"metrics": ["exact_match", "loss"]}}
    words = [
        launcher.write("first", make_recipe(train=train, **own, **scored)),
        launcher.write("second", make_recipe(train=train | {"max_steps": 3, "seed": 5}, **own)),
    ]
    launcher("train-many", *words)
    launcher.engine = "fsdp2"
    launcher("train-many", *words)
    for name in ("first", "second"):
        whole, shared_out = (launcher.run(name, number) for number in (1, 2))
        assert_equal(adapter_of(whole), adapter_of(shared_out))
        assert shared_out.read_summary()["evaluation_loss"] == whole.read_summary()["evaluation_loss"]


@pytest.mark.long
def test_runs_resume_with_a_base_that_is_shared_out(make_recipe: MakeRecipe, launcher: Launcher) -> None:
    """Of ddp, with fsdp2, bit for bit; all processes write the samples that the main one keeps, and one of
    the runs has the base, without its adapter, for its teacher."""
    train = SAVING | {"max_steps": 8}
    samples = {"prompts": ["hi", "there"], "every_steps": 2, "max_new_tokens": 8}
    sections: dict[str, dict[str, Any]] = {
        "first": {"tracking": {"tracker": "none", "samples": samples}},
        "second": {"objective": {"kind": "distill", "teacher": "base"}},
    }
    words = [launcher.write(name, make_recipe(train=train, **own)) for name, own in sections.items()]
    launcher("train-many", *words)
    runs = [launcher.run(name) for name in sections]
    whole, written = [adapter_of(run) for run in runs], runs[0].samples_path.read_text()
    for run in runs:
        shutil.rmtree(run.checkpoints / "checkpoint-8")
        run.write_summary({"status": "running"})
    launcher.engine = "fsdp2"
    launcher("train-many", *(word for run in runs for word in ("--resume", str(run.path))))
    for run, weights in zip(runs, whole, strict=True):
        assert_equal(adapter_of(run), weights)
    assert runs[0].samples_path.read_text() == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--launch", "zero3", "--processes", "2"),
            "train-many in several processes is ddp or fsdp2, and this",
        ),
        (
            ("--launch", "kept.yaml", "--processes", "2"),
            "fsdp_reshard_after_forward: false can't be honoured",
        ),
        (("--launch", "ddp", "--processes", "3"), "global_batch_size"),
        (("--processes", "2"), "needs --launch ddp"),
    ],
)
def test_what_cannot_be_launched(
    make_recipe: MakeRecipe, launcher: Launcher, words: tuple[str, ...], message: str
) -> None:
    """One message, before anything is started."""
    launcher.write("one", make_recipe(train=SGD))
    kept = "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false}\n"
    (launcher.folder / "kept.yaml").write_text(kept)
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "train-many", "one.yaml", "one.yaml", *words],
        env=launcher.environment,
        cwd=launcher.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not (launcher.folder / "of-one").exists()

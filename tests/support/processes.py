"""Runs for tests: in this process, and in real ones that can be killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from finetune.recipe.schema import Recipe
from finetune.runs.folder import RunFolder
from finetune.training import build, run
from finetune.training.inputs import build_inputs
from finetune.training.trainer import ExactTrainer

RUN_SCRIPT = """
import sys
from finetune.cli.quiet import quiet_libraries
quiet_libraries()
from finetune.recipe.schema import Recipe
from finetune.training import run
from tests.support.messages import hearing

with hearing(lambda line: print(line, flush=True)):
    trained = run.start(Recipe.model_validate_json(sys.argv[1]), name="killed", command="test")
sys.exit(trained.summary["status"] == "stopped")
"""

EXACT = {
    "micro_batch_size": 4,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "max_steps": 12,
    "save_every": 4,
}


def start(recipe: Recipe, name: str = "run") -> RunFolder:
    return run.start(recipe, name=name, command="finetune train test").folder


def adapter_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.adapter / "adapter_model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def launch(recipe: Recipe) -> subprocess.Popen[str]:
    """Train the recipe in a process of its own, in the run folder killed-001."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", RUN_SCRIPT, recipe.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def trainer_of(recipe: Recipe, folder: Path, dtype: torch.dtype | None = torch.float32) -> ExactTrainer:
    inputs = build_inputs(recipe)
    model = build.build_model(recipe, inputs)
    if dtype is not None:
        model = model.to(dtype)
    return build.build_trainer(recipe, inputs, model, checkpoints=folder, evaluate_first=False, callbacks=[])


def trained_weights(trainer: ExactTrainer) -> torch.Tensor:
    trainer.train()
    weights = [
        parameter.detach().flatten() for parameter in trainer.model.parameters() if parameter.requires_grad
    ]
    return torch.cat(weights)

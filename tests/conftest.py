"""Fixtures of all tests: a tiny random LLaMA, a small data set, the command line."""

import gc
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from finetune.recipe.schema import Recipe
from tests.support.cli import Finetune, FinetuneHere, Result, run_here, run_process
from tests.support.models import save_tiny_llama
from tests.support.recipes import MakeRecipe

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The key that signs checkpoints is the tests' own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="finetune-state-")
# And so is the database of its tracker, which Trackio looks for when it is imported.
os.environ["TRACKIO_DIR"] = str(Path(tempfile.mkdtemp(prefix="finetune-trackio-")) / "trackio")
# On matrices this small a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite that is started in the background of a script ignores Ctrl-C, and so would every process that a test
# starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


settings.register_profile("quick", settings.get_profile("ci"), max_examples=20)
# A busy machine is no defect of ours.
settings.register_profile("new", deadline=None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for a model loads torch."""
    for item in items:
        if "tiny_base" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.torch)


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_is_not_searched() -> None:
    """The Trainer collects garbage in each run: without what was there before, mostly modules, it takes a
    millisecond and not half of a tiny run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data of tests go to a temporary cache; downloaded bases and tokenizers stay where they are."""
    kept = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune")
    cache = tmp_path_factory.mktemp("cache")
    for name in ("bases", "test-tokenizers"):
        (kept / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(kept / name)
    os.environ["FINETUNE_CACHE"] = str(cache)


@pytest.fixture
def hangup_heard() -> Iterator[None]:
    """SIGHUP is what it is in a terminal, also where the suite was started by nohup, which has it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random LLaMA (untied head, float32) and its ChatML tokenizer. Never write to
    it."""
    folder = tmp_path_factory.mktemp("tiny-base")
    save_tiny_llama(folder)
    return folder


@pytest.fixture
def alpaca_file(tmp_path: Path) -> Path:
    """40 short alpaca rows of differing length."""
    rows = [
        {"instruction": f"Say {word} {i} times.", "input": "", "output": " ".join([word] * (i % 5 + 1))}
        for i, word in enumerate(["blue", "lamp", "seven", "Ada"] * 10)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def make_recipe(tiny_base: Path, alpaca_file: Path, tmp_path: Path) -> MakeRecipe:
    """make_recipe(section={...}) -> a recipe for the tiny base and 40 alpaca rows, with those changes."""

    def make(**sections: dict[str, Any]) -> Recipe:
        tree: dict[str, dict[str, Any]] = {
            "model": {"base": str(tiny_base)},
            "adapter": {"rank": 4},
            "data": {
                "train": [{"path": str(alpaca_file), "format": "alpaca"}],
                "evaluation": {"fraction": 0.1},
                "max_length_tokens": 128,
            },
            "train": {"micro_batch_size": 2, "precision": "fp32", "learning_rate": 1e-2},
            "tracking": {"tracker": "none"},
            "output": {"folder": str(tmp_path / "runs")},
        }
        return Recipe.model_validate(
            {name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections}
        )

    return make


@pytest.fixture
def finetune(tmp_path: Path) -> Finetune:
    """finetune("train", "recipe.yaml", code=0) runs the command as a user does, in tmp_path, and checks its
    exit code."""

    def run(*arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        # A user has every core; one thread is for the tiny matrices inside the tests' own process.
        variables = {"TRACKIO_DIR": str(tmp_path / "trackio")}
        result = run_process(*arguments, cwd=tmp_path, environment=variables, **options)
        assert result.returncode == code, (
            f"{arguments} gave {result.returncode}:\n{result.stdout}\n{result.stderr}"
        )
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def finetune_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> FinetuneHere:
    """The same inside the test's process."""

    def run(*arguments: str, code: int = 0) -> Result:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        result = run_here(monkeypatch, capsys, *arguments)
        assert result.code == code, f"{arguments} gave {result.code}:\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        return result

    return run

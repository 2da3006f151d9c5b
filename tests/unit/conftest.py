"""A small recipe on the tiny base."""

import shutil
from pathlib import Path

import pytest

from tests.support.cli import Says, run_here
from tests.support.models import MEMORISED, learn


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Says:
    """says("plan", ...) -> the exit code of `finetune plan ...`, and all that it printed."""

    def run(*words: str) -> tuple[int, str]:
        result = run_here(monkeypatch, capsys, *words)
        return result.code, result.stdout + result.stderr

    return run


@pytest.fixture(scope="session")
def memorised(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that knows MEMORISED by heart, to be asked by its chat template. Never write
    to it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("memorised") / "model"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for question, answer in MEMORISED.items():
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(
            tuple(
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (prompt, f"{answer}<|im_end|>")
            )
        )
    learn(folder, rows)
    return folder

"""What DeepSpeed compiles, and where that is looked for."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from finetune.engines import deepspeed
from finetune.engines.base import find_program
from finetune.engines.deepspeed import ZERO2, ZERO2_OFFLOAD, reach_ninja
from finetune.errors import LaunchError


@pytest.fixture
def beside_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A ninja in an environment that isn't activated, and none on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ninja").write_text("#!/bin/sh\n")
    (folder / "ninja").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return folder


def test_a_ninja_beside_this_python_is_found_and_reached(beside_python: Path) -> None:
    """By us, and then by torch, which looks on the PATH alone."""
    assert shutil.which("ninja") is None
    assert find_program("ninja") == str(beside_python / "ninja")
    reach_ninja()
    assert shutil.which("ninja") == str(beside_python / "ninja")
    before = os.environ["PATH"]
    reach_ninja()
    assert os.environ["PATH"] == before


@pytest.mark.parametrize(("gpu", "engine", "refused"), [
    (True, ZERO2, False), (True, ZERO2_OFFLOAD, True), (False, ZERO2, True),
])  # fmt: skip
def test_compilers_are_asked_for_where_deepspeed_compiles(
    gpu: bool, engine: deepspeed.DeepSpeed, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that is for offloading alone."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    monkeypatch.setattr(deepspeed, "find_program", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if not refused:
        engine.check_installed()
        return
    with pytest.raises(LaunchError, match=r"g\+\+ and ninja"):
        engine.check_installed()

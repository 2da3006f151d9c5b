"""Precision, threads and kernels are chosen by what is there, and the reason is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.models import device as precision


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="asks about the CPU"
)
@pytest.mark.parametrize(
    ("native", "auto", "bf16"),
    [
        (True, ("bf16", "the CPU has bf16 natively"), ""),
        (False, ("fp32", "the CPU has no native bf16"), "fp32 would be faster"),
    ],
)
def test_bf16_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, native: bool, auto: tuple[str, str], bf16: str
) -> None:
    """auto takes bf16 only where the processor multiplies it itself; a bf16 that was asked for is kept, with
    a word."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    chosen = precision.choose_precision("auto")
    assert (chosen.name, chosen.reason) == auto
    asked = precision.choose_precision("bf16")
    assert asked.name == "bf16"
    assert bf16 in asked.reason


TWO_PROCESSES = {
    "TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "expected"), [({}, "all"), (TWO_PROCESSES, "half"), ({"OMP_NUM_THREADS": "1"}, "1")]
)
def test_threads(variables: dict[str, str], expected: str) -> None:
    """A process takes its share of the cores, and what the user set before all else."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if cores is None:
        pytest.skip("this system doesn't say which cores are usable")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    root = str(Path(__file__).resolve().parents[3])
    code = "from finetune.models.device import choose_threads; print(choose_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    found = int(done.stdout)
    assert found == 1 if expected == "1" else found <= max(1, cores // (1 if expected == "all" else 2))
    assert found >= 1

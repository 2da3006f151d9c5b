"""Precision, threads and kernels are chosen by what is there, and the reason is said."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finetune import environment
from finetune.errors import ModelError
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
def test_threads(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    """A process takes its share of the cores, and what the user set before all else."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if cores is None:
        pytest.skip("this system doesn't say which cores are usable")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    torch.set_num_threads(int(variables.get("OMP_NUM_THREADS", cores)))  # as torch starts
    try:
        found = precision.choose_threads()
    finally:
        torch.set_num_threads(before)
    assert found == 1 if expected == "1" else found <= max(1, cores // (1 if expected == "all" else 2))
    assert found >= 1


@pytest.fixture
def a_t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says on a GPU without bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)


@pytest.mark.usefixtures("a_t4")
def test_a_gpu_without_bf16_takes_fp16_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is scaled there; several processes, for which fp16 is refused, take fp32."""
    assert precision.choose_precision("auto").name == "fp16"
    for name, value in TWO_PROCESSES.items():
        monkeypatch.setenv(name, value)
    assert precision.choose_precision("auto").name == "fp32"


@pytest.fixture
def a_gpu_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine where the driver shows a GPU, and torch finds none."""
    if torch.cuda.is_available():
        pytest.skip("torch finds one here")
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(environment, "NVIDIA_GPUS", (str(tmp_path / "nvidia[0-9]*"),))
    precision.unusable_gpu.cache_clear()
    yield
    precision.unusable_gpu.cache_clear()


@pytest.mark.usefixtures("a_gpu_out_of_reach")
def test_a_gpu_that_torch_can_not_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own reason and what to install, in place of a training on the CPU; the CPU can be asked for."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ModelError, match="NVIDIA GPU") as told:
        precision.choose_device()
    with pytest.raises((RuntimeError, AssertionError)) as reason:
        torch.cuda.init()
    assert str(reason.value).split(".")[0].split("\n")[0] in str(told.value)
    assert "pip install --force-reinstall torch==" in str(told.value)
    precision.unusable_gpu.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert precision.choose_device().type == "cpu"


@pytest.mark.usefixtures("a_gpu_out_of_reach")
def test_a_driver_that_is_too_old_is_told_with_the_torch_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the index of a torch for older drivers."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12070).")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ModelError, match=r"too old \(found version 12070\).*whl/cu126"):
        precision.choose_precision("auto")

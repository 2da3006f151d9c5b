"""Memory: which errors are about it, how a GPU's is taken, and what is said of it."""

import os
from pathlib import Path

import pytest
import torch
from torch import distributed

from finetune import environment
from finetune.engines import memory
from finetune.engines.group import Group, contact
from finetune.engines.launch import allocator
from finetune.errors import PeerLost, TrainingError
from finetune.models.sizes import state_bytes

NCCL = distributed.DistBackendError(
    "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error, NCCL version 2.29.7\n"
    "Last error:\nFailed to CUDA calloc 4194304 bytes"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        NCCL,
    ],
    ids=lambda error: str(error)[:24],
)
def test_what_ran_out_of_memory_is_told_with_advice(error: RuntimeError) -> None:
    """Whoever says it: torch, cuBLAS, Triton or NCCL, beside other processes too."""
    with pytest.raises(TrainingError, match=r"out of memory.*micro_batch_size"):  # noqa: SIM117
        with memory.memory_advice(), contact(Group(0, 2, 0)):
            raise error


def test_an_error_of_nccl_that_is_none_of_memory_is_a_lost_peer() -> None:
    """It goes on as before."""
    with pytest.raises(PeerLost), memory.memory_advice(), contact(Group(0, 2, 0)):
        raise distributed.DistBackendError("NCCL error: remote process exited")


def test_what_is_reserved_is_said_beside_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must fit on a GPU is what torch has taken of it, gaps included."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 34_000_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 36_500_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (47_000_000_000, 85_000_000_000))
    expected = "34.0 GB (36.5 GB reserved; 47.0 of the GPU's 85.0 GB are free now)"
    assert memory.peak_memory_words() == expected


@pytest.mark.parametrize(
    ("gpu", "given", "expected"),
    [
        (True, {}, "expandable_segments:True"),
        (True, {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, None),
        (True, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        (False, {}, None),
    ],
)
def test_segments_grow_on_a_gpu_unless_the_user_says_otherwise(
    gpu: bool, given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Packs are of many lengths; torch reads the variable when it first allocates."""
    if gpu:
        (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(environment, "NVIDIA_GPUS", (str(tmp_path / "nvidia[0-9]*"),))
    for name in (*allocator.GPU_SETTINGS, "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = set(os.environ)
    allocator.set_up_gpu()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected
    # Read once, at the first product: before train.deterministic is known.
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if gpu else None)
    for name in set(os.environ) - before:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw_torch", 8 * 65536),
        ("adamw_bnb_8bit", 2 * (65536 + 4 * 256)),
        ("lion_8bit", 65536 + 4 * 256),
        ("lion_32bit", 4 * 65536),
        ("paged_adamw_8bit", 0),
        ("paged_lion_32bit", 0),
    ],
)
def test_the_rehearsal_knows_transformers_names_of_optimizers(name: str, expected: int) -> None:
    """Bytes of the state of a matrix of 256 x 256."""
    assert state_bytes(name, [(256, 256)]) == expected

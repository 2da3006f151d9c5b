"""Memory: how much was used, and what to do where there wasn't enough."""

import functools
import logging
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from finetune.engines.launch.allocator import find_jemalloc
from finetune.errors import TrainingError
from finetune.models.device import is_out_of_memory

logger = logging.getLogger(__name__)


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the GPU where one is used, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # ru_maxrss counts kilobytes on Linux and bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reserved_memory_bytes() -> int | None:
    """The most that torch has taken of the GPU, blocks that lay free included; None without one."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None


def peak_memory_words() -> str:
    """Both, for people."""
    reserved, words = reserved_memory_bytes(), f"{peak_memory_bytes() / 1e9:.1f} GB"
    if reserved is None:
        return words
    free, whole = torch.cuda.mem_get_info()
    return (
        f"{words} ({reserved / 1e9:.1f} GB reserved; {free / 1e9:.1f} of the GPU's {whole / 1e9:.1f} GB are "
        "free now)"
    )


def allocator_name() -> str:
    """What allocates the host's memory: a preloaded library, or the system's own."""
    return Path(os.environ.get("LD_PRELOAD", "")).name or "the system's allocator"


@functools.cache
def say_without_jemalloc() -> None:
    """Say, once a process, that a program of the user's was not started with the allocator that `finetune
    train` takes."""
    if sys.platform == "linux" and "LD_PRELOAD" not in os.environ and (path := find_jemalloc()) is not None:
        logger.info(
            f"jemalloc is installed ({path}) and not loaded, which only the start of a program can do: with "
            f"LD_PRELOAD={path} before it, as `finetune train` sees to by itself, training on the CPU takes "
            "less memory"
        )


@contextmanager
def memory_advice(*, together: bool = False) -> Iterator[None]:
    """Turns torch's errors about memory into a TrainingError that says what to change; of runs that train
    together, how many, too."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        most = "--max-adapters, " if together else ""
        raise TrainingError(
            f"out of memory: {str(error).splitlines()[0].rstrip('.')}. Lower {most}train.micro_batch_size or "
            "data.max_length_tokens, set train.activation_checkpointing: true, or set adapter.method: qlora."
        ) from error

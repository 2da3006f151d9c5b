"""Libraries kept quiet, so that a verb's output is its own. Torch-free: it acts before any library is
imported."""

import logging
import os
import sys
import warnings
from pathlib import Path

GPU_DEVICES = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg")
"""Names under /dev of NVIDIA's and AMD's devices, and of either under WSL."""


def quiet_libraries() -> None:
    """Keep what libraries say about themselves out of the output; progress bars stay where standard error is
    a terminal.

    What the user sets in the environment goes first.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    if not any(match for name in GPU_DEVICES for match in Path("/dev").glob(name)):
        # Else DeepSpeed, which peft and accelerate import, says on standard output, amid our JSON, that it
        # took the CPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # It says that it found no package `kernels`, which would fetch code from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)

"""Which device, how many threads and which number type a run uses, and why."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from finetune import environment
from finetune.errors import ModelError

PrecisionName = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[PrecisionName, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

PROCESSOR_MODEL = ("cpu family", "model", "CPU implementer", "CPU part")
"""What Linux calls the numbers of a processor's model, on x86 and on ARM."""

MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "Failed to CUDA calloc",
)
"""What is said, in a RuntimeError, where memory ends: torch of the host's; CUDA, Triton, NCCL and Apple's
MPS; cuBLAS and cuDNN; NCCL of its own buffers."""


@dataclass(frozen=True)
class Precision:
    """The base's and the arithmetic's type, and the reason for the choice."""

    name: PrecisionName
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of that name."""
        return DTYPES[self.name]


OLDER_DRIVERS = "https://download.pytorch.org/whl/cu126"
"""The index of torch for drivers older than CUDA 13's, which begin with 580."""


def choose_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU.

    Raises ModelError where there is an NVIDIA GPU that torch can't use.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    why = unusable_gpu()
    if why is not None:
        raise ModelError(
            f"this machine has an NVIDIA GPU, and torch {torch.__version__} can't use it: {why} To compute "
            "on the CPU all the same, set CUDA_VISIBLE_DEVICES to nothing (CUDA_VISIBLE_DEVICES= finetune "
            "...)."
        )
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@cache
def unusable_gpu() -> str | None:
    """torch's own reason why it can't use the NVIDIA GPU that this machine has, and what to install.

    None where it can, where there is no such GPU, and where CUDA_VISIBLE_DEVICES hides it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or torch.cuda.is_available() or not environment.has_nvidia_gpu():
        return None
    version = torch.__version__.partition("+")[0]
    if torch.version.cuda is None:
        advice = f"This torch was built without CUDA: pip install --force-reinstall torch=={version}"
    else:
        advice = (
            f"This torch is built for CUDA {torch.version.cuda}: update the driver, or take the torch for "
            f"older ones: pip install --force-reinstall torch=={version} --index-url {OLDER_DRIVERS}"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).removesuffix(".")
    else:
        reason = "it finds no device"
    return f"{reason}. {advice}."


def widest_type() -> torch.dtype:
    """float64, but float32 on Apple's MPS, which has no wider one."""
    return torch.float32 if choose_device().type == "mps" else torch.float64


def choose_threads() -> int:
    """Set torch's threads, once for a run: OMP_NUM_THREADS where it is set, else this process's share of the
    usable cores."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // environment.world().local_size)))
    return torch.get_num_threads()


def cpu_has_native_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX-512 BF16, AMX or ARM's BF16), so that bf16 is faster
    than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_precision(asked: str) -> Precision:
    """The precision for `train.precision`: auto takes bf16 where the device has it natively, else fp16 on a
    GPU that one process uses, else fp32.

    Raises ModelError for fp16 where it can't be trained with loss scaling, and for bf16 on a GPU without it.
    """
    device = choose_device()
    if asked == "auto":
        return _native_precision(device)
    if asked == "fp16" and device.type != "cuda":
        raise ModelError(
            f"train.precision fp16 needs a CUDA device for its loss scaling; this is {device.type}. Use auto."
        )
    if (
        asked == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ModelError(
            f"train.precision bf16: {torch.cuda.get_device_name(device)} has no bf16. Set train.precision to "
            "fp16."
        )
    if asked == "bf16" and device.type == "cpu" and not cpu_has_native_bf16():
        return Precision(
            "bf16", "asked for by the recipe; this CPU has no native bf16, so fp32 would be faster"
        )
    names: dict[str, PrecisionName] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    return Precision(names[asked], "asked for by the recipe")


def _native_precision(device: torch.device) -> Precision:
    """The fastest that is safe."""
    if device.type != "cuda":
        where = f"the {device.type.upper()}"
        if device.type == "cpu" and cpu_has_native_bf16():
            return Precision("bf16", f"{where} has bf16 natively")
        return Precision("fp32", f"{where} has no native bf16")
    where = torch.cuda.get_device_name(device)
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16", f"{where} has bf16 natively")
    if environment.world().size == 1:
        return Precision(
            "fp16", f"{where} has no bf16; fp16 with a scaled loss is several times fp32's speed"
        )
    return Precision("fp32", f"{where} has no bf16, and fp16 is for one process")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch is about memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in MEMORY_TEXTS)


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Puts torch's generators, the host's and the device's, back to where they were."""
    if device.type == "mps":
        state = torch.mps.get_rng_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    if device.type == "mps":
        torch.mps.set_rng_state(state)


@cache
def processor_facts() -> dict[str, str]:
    """What Linux says of the first processor, by its own names; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor_name() -> str:
    """The processor's name, else its kind."""
    return processor_facts().get("model name") or platform.processor() or platform.machine()


def processor_model() -> str:
    """Its model in numbers: of one name there are several, which round otherwise."""
    found = processor_facts()
    return ", ".join(f"{name} {found[name]}" for name in PROCESSOR_MODEL if name in found)

"""Which device, how many threads and which number type a run uses, and why."""

import os
from dataclasses import dataclass
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


ALLOCATOR_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
)
"""What torch says, in a plain RuntimeError, where the host's or Apple's memory ends."""


@dataclass(frozen=True)
class Precision:
    """The base's and the arithmetic's type, and the reason for the choice."""

    name: PrecisionName
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of that name."""
        return DTYPES[self.name]


def choose_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


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
    """The precision for `train.precision`: auto takes bf16 where the device has it natively, else fp32.

    Raises ModelError for fp16 where it can't be trained with loss scaling, and for bf16 on a GPU without it.
    """
    device = choose_device()
    if asked == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            where = torch.cuda.get_device_name(device)
        else:
            native = device.type == "cpu" and cpu_has_native_bf16()
            where = f"the {device.type.upper()}"
        if native:
            return Precision("bf16", f"{where} has bf16 natively")
        return Precision("fp32", f"{where} has no native bf16")
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


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch is about memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in ALLOCATOR_TEXTS)

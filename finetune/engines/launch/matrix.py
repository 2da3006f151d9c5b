"""What works with what: the one table of methods, engines and precisions. Torch-free.

A cell that says "works" is run by a test (tests/distributed); one that doesn't says why, and what comes nearest.
"""

from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "dora", "qlora", "full"]
METHODS: tuple[Method, ...] = ("lora", "dora", "qlora", "full")
ENGINES = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Refusal:
    """Why a combination isn't offered."""

    reason: str
    nearest: str
    """What to choose in its place."""


OFFLOAD = Refusal("offloading is shown for lora alone", "zero2 or zero3 without offloading")
REFUSED: dict[tuple[str, str], Refusal] = {
    ("dora", "zero1"): Refusal("DoRA under DeepSpeed was never shown to be right", "ddp or fsdp2"),
    ("dora", "zero2"): Refusal("DoRA under DeepSpeed was never shown to be right", "ddp or fsdp2"),
    ("dora", "zero3"): Refusal("DoRA needs the norm of whole weights, which ZeRO-3 has cut up", "ddp or fsdp2"),
    **{(method, engine): OFFLOAD for method in ("dora", "qlora", "full") for engine in ("zero2_offload", "zero3_offload")},
}
FP16 = Refusal("fp16 scales its loss, which is shown in one process on CUDA only", "bf16, or fp32 where there is no bf16")


def refusal(method: Method, engine: str, precision: str) -> Refusal | None:
    """Why these don't go together; None where they do."""
    if engine in ENGINES and precision == "fp16":
        return FP16
    return REFUSED.get((method, engine))


def method_of(method: str, use_dora: bool) -> Method:
    """The table's name for the recipe's adapter section."""
    if method == "lora" and use_dora:
        return "dora"
    found: Method = next(known for known in METHODS if known == method)
    return found

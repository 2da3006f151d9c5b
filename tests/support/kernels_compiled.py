"""Triton's kernels compiled for GPUs that aren't here, at LLaMA-3.1-8B's sizes in bf16: a process of its own
prints for each kernel and GPU how many bytes of machine code it became."""

import json
import sys
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from finetune.models.kernels import triton_kernels

FLOAT32 = ("scale", "losses", "columns")
FLOATS = ("epsilon", "multiplier", "smoothing")
CONSTANTS: dict[str, dict[str, Any]] = {
    "rms_norm": {"ADDS": True, "ROWS": 1, "BLOCK": 4096},
    "rms_norm_backward": {"ADDS": True, "ROWS": 1, "BLOCK": 4096},
    "rotate": {"BACKWARD": True, "HEADS": 32, "KEY_HEADS": 8, "HALF": 64, "REST": 0},
    "swiglu": {"BLOCK": 1024},
    "swiglu_backward": {"BLOCK": 1024},
    "cross_entropy": {"SMOOTHS": True, "BLOCK": 8192},
    "round_rows": {"SCALES": True, "SMALLEST": 2.0**-100, "BLOCK": 16384},
}
NEEDS = {"round_rows": 89}
"""The compute capability that a kernel needs, where it is above Ampere's."""
POINTERS = {"x", "update", "weight", "total", "y", "gradient", "z", "kept", "output", "q", "k", "cos", "sin"} | {
    "rotated_q", "rotated_k", "gate", "up", "product", "for_gate", "for_up", "logits",
}  # fmt: skip


def kind(name: str) -> str:
    """Of a kernel's argument."""
    if name in FLOATS:
        return "fp32"
    if name in FLOAT32:
        return "*fp32"
    if name == "numbers":
        return "*fp8e4nv"
    return "*bf16" if name in POINTERS else {"labels": "*i64"}.get(name, "i32")


def machine_code(name: str, capability: int) -> int:
    """Bytes that ptxas made of a kernel."""
    kernel, constants = getattr(triton_kernels, name), CONSTANTS[name]
    signature = {one: "constexpr" if one in constants else kind(one) for one in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    warps = {"rms_norm": 8, "rms_norm_backward": 8, "cross_entropy": 16, "round_rows": 16}.get(name, 4)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return len(made.asm["cubin"])


def main() -> None:
    """For the compute capabilities that are given: 80 is Ampere, 90 is Hopper."""
    print(
        json.dumps(
            {
                f"{name} {one}": machine_code(name, int(one))
                for one in sys.argv[1:]
                for name in CONSTANTS
                if int(one) >= NEEDS.get(name, 0)
            }
        )
    )


if __name__ == "__main__":
    main()

"""Rows of numbers to the bytes of a type."""

import ctypes
from typing import Any

import torch

from finetune.errors import ExportError
from finetune.exporters.finite import largest_number
from finetune.exporters.gguf.library import library
from finetune.exporters.gguf.types import BY_LLAMA_CPP, row_bytes
from finetune.models.safetensors import raw

LARGEST_F16 = 65_504
TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def encode(rows: torch.Tensor, kind: str, name: str) -> torch.Tensor:
    """Rows (N x M, or M numbers) as bytes (N x bytes of a row, or the bytes).

    Raises ExportError where a number isn't finite, or beyond what float16 holds.
    """
    largest = largest_number(rows, name)
    if kind == "F16" and largest > LARGEST_F16:
        raise ExportError(
            f"{name} holds a number of {largest:,.0f}, and float16 ends at {LARGEST_F16:,}: choose "
            "--quantize bf16, f32 or q8_0."
        )
    if kind in TORCH_TYPES:
        return raw(rows.to(TORCH_TYPES[kind])).view(len(rows), -1)
    numbers = rows.float().contiguous()
    return _by_llama_cpp(numbers, kind) if kind in BY_LLAMA_CPP else _by_gguf(numbers, kind)


def _by_gguf(numbers: torch.Tensor, kind: str) -> torch.Tensor:
    import gguf

    return torch.from_numpy(gguf.quants.quantize(numbers.numpy(), gguf.GGMLQuantizationType[kind]))


def _by_llama_cpp(numbers: torch.Tensor, kind: str) -> torch.Tensor:
    import gguf

    rows, columns = numbers.shape
    found = torch.empty(rows, row_bytes(kind, columns), dtype=torch.uint8)
    call: Any = library().ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    number = ctypes.c_int64
    written = call(
        ctypes.c_int(gguf.GGMLQuantizationType[kind]), ctypes.c_void_p(numbers.data_ptr()),
        ctypes.c_void_p(found.data_ptr()), number(0), number(rows), number(columns), None,
    )  # fmt: skip
    assert written == found.numel(), kind  # noqa: S101 - both have one table of sizes
    return found

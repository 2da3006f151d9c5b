"""llama.cpp's own library, in the wheel xllamacpp: what quantises, and what runs a file."""

import ctypes
import functools
import importlib.util
from pathlib import Path

from finetune.extras import is_installed, refuse_without

WHEEL = "xllamacpp"


def has_library() -> bool:
    """Whether llama.cpp is here."""
    return is_installed(WHEEL)


@functools.cache
def library() -> ctypes.CDLL:
    """The shared library. Raises FinetuneError where it isn't installed."""
    refuse_without(WHEEL, "a K-quant: llama.cpp's own code, which writes it,")
    spec = importlib.util.find_spec(f"{WHEEL}.{WHEEL}")
    assert spec is not None  # noqa: S101 - the package is there
    assert spec.origin is not None  # noqa: S101 - and its module is a file
    return ctypes.CDLL(str(Path(spec.origin)))

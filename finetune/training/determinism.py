"""The same bits at each run on a GPU too: sums in one order."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from finetune.errors import TrainingError

VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
"""What cuBLAS, and transformers' own attentions, are told by."""


_asking = 0
"""How many ask for it now: runs that train together end at different times."""
_settings = ExitStack()
"""What the first of them has changed, and the last one puts back."""


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """While this lasts, for any of those who ask for it, torch takes the kernels whose sums have one order.

    Raises TrainingError where an operation has none.
    """
    global _asking
    if not asked:
        yield
        return
    if not _asking:
        _settings.enter_context(_of_one_order())
    _asking += 1
    try:
        yield
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        raise TrainingError(
            f"train.deterministic: {str(error).split(',')[0]}. Set it to false: the last digits of two runs "
            "may then differ on this device."
        ) from error
    finally:
        _asking -= 1
        if not _asking:
            _settings.close()


@contextmanager
def _of_one_order() -> Iterator[None]:
    variables = {name: os.environ.get(name) for name in VARIABLES}
    enabled, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    os.environ |= {name: os.environ.get(name, value) for name, value in VARIABLES.items()}
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # nothing is read that was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        settings.fill_uninitialized_memory = fills
        for name, value in variables.items():
            if value is None:
                del os.environ[name]

"""Sizes that the code which computes, the memory check before training and the plan share. No torch."""

import math
import re
from collections.abc import Iterable

from finetune.errors import FinetuneError

SIZE = re.compile(r"(?P<number>\d{1,9}(\.\d{1,9})?)\s*(?P<unit>[KMGT])(?P<binary>I?)B", re.IGNORECASE)
Sizes = tuple[int, ...]

CHUNK_POSITIONS = 512
"""Supervised positions whose logits exist at once in the loss: 512 x 128,256 in fp32 are 0.26 GB."""

INPUTS_ON_DEVICE = 2
"""Layer inputs that are on the device at once where the host keeps them: as they leave, and as they come
back."""

START_BATCH_TOKENS = 1024
"""How many a batch of the rows has at least that an adapter's start is computed of."""

NUMBERS = {"lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0, "ademamix": 3, "schedule_free": 3}
"""How many an optimizer keeps of each trained weight, by how its name begins; 2, as Adam, where it isn't
here."""

SMALLEST_IN_8_BIT = 4096
"""bitsandbytes keeps the state of smaller tensors in float32."""

BLOCK = 256
"""Numbers of an 8-bit state that share a scale."""


def state_bytes(optimizer: str, shapes: Iterable[Sizes], number_bytes: int = 4, vocabulary: int = 0) -> int:
    """Bytes of an optimizer's state after its first step, for tensors of these shapes; by our names of
    optimizers or transformers'. A paged one's goes to the host where the device is full, and counts nothing.

    `number_bytes` is 2 for adamw whose state is in bf16 (train.weights_dtype). Matrices of `vocabulary` rows
    are the embedding and the head, which muon leaves to AdamW.
    """
    return sum(_of_tensor(optimizer, shape, vocabulary) for shape in shapes) * number_bytes // 4


def _of_tensor(optimizer: str, shape: Sizes, vocabulary: int) -> int:
    if optimizer.startswith("paged_"):
        return 0
    count = math.prod(shape)
    if optimizer == "muon":
        return 4 * count * (1 if len(shape) == 2 and shape[0] != vocabulary else 2)
    if optimizer == "polora":
        return 4 * (count + max(shape))  # a number for each input of A, or output of B
    if optimizer == "adafactor":
        # Rows and columns in place of the matrix: Shazeer and Stern 2018, arXiv:1804.04235.
        return 4 * (sum(shape[-2:]) * math.prod(shape[:-2]) if len(shape) > 1 else count)
    numbers = next((held for name, held in NUMBERS.items() if optimizer.startswith(name)), 2)
    if optimizer.endswith("_8bit") and count >= SMALLEST_IN_8_BIT:
        return numbers * (count + 4 * math.ceil(count / BLOCK))
    return 4 * numbers * count


def parse_size(text: str, option: str) -> int:
    """5GB, 500MB or 2GiB in bytes. Raises FinetuneError for anything else."""
    match = SIZE.fullmatch(text.strip())
    if match is None or not float(match["number"]):
        raise FinetuneError(
            f"{option} is {text!r}; expected a number and a unit, such as 80GiB, 5GB or 500MB."
        )
    return int(
        float(match["number"])
        * (1024 if match["binary"] else 1000) ** (1 + "KMGT".index(match["unit"].upper()))
    )

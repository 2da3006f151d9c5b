"""What a merge is asked, by the command line or its plan, and what is refused before anything is read. Loads
no torch."""

from finetune.errors import MergeError
from finetune.merging.rounding.request import RoundingRequest

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number, in each type that --dtype may name."""
CHECKS = ("full", "tensors", "none")
QLORA_BASES = ("auto", "16bit", "nf4", "int8")


def refuse_bad_options(dtype: str | None, check: str, qlora_base: str, rounding: RoundingRequest) -> None:
    """Raises MergeError for a value that an option doesn't have, and for options that contradict each
    other."""
    for option, value, known in (
        ("--dtype", "float32" if dtype is None else dtype, tuple(BYTES_OF)),
        ("--verify", check, CHECKS),
        ("--qlora-base", qlora_base, QLORA_BASES),
    ):
        if value not in known:
            raise MergeError(f"{option} is {value!r}; expected one of {', '.join(known)}.")
    rounding.refuse_contradictions(dtype)

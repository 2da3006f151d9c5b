"""Stochastic rounding to 16 bits, given what is drawn: shared by AdamW in bf16 and the merge."""

import torch

CUT_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""The bits of a float32 number that the type has no place for."""


def with_bits(exact: torch.Tensor, drawn: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 numbers in bfloat16 or float16: one of the two neighbours, the nearer one more likely, so that
    the mean is exact.

    A random number (`drawn`: int32, 0 to 65,535) is added to the bits that will be cut off, and what is
    carried counts.
    """
    cut = CUT_BITS[dtype]
    if dtype == torch.bfloat16:  # which has float32's exponents
        bits = (exact.contiguous().view(torch.int32) + drawn).bitwise_and_(-(1 << cut))
        return bits.view(torch.float32).to(dtype)
    # Below its smallest normal number float16 goes on in the steps it has just above: shifted there.
    magnitude, smallest = exact.abs(), torch.finfo(dtype).smallest_normal
    shift = (magnitude < smallest) * smallest
    bits = (magnitude + shift).view(torch.int32).add_(drawn >> (16 - cut)).bitwise_and_(-(1 << cut))
    return bits.view(torch.float32).sub_(shift).copysign_(exact).to(dtype)

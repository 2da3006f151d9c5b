"""Stochastic rounding to 16 bits, given what is drawn: shared by AdamW in bf16 and the merge."""

import torch


def with_bits(exact: torch.Tensor, drawn: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 numbers in bfloat16 or float16: one of the two neighbours, away from 0 where what is cut off is
    more than 65,536ths drawn (int32, 0 to 65,535); so the nearer one is the likelier, and the mean exact."""
    if dtype == torch.bfloat16:
        # A bf16 number is the upper half of a float32 one: what is carried from the lower half counts.
        bits = (exact.contiguous().view(torch.int32) + drawn).bitwise_and_(-(1 << 16))
        return bits.view(torch.float32).to(torch.bfloat16)
    facts = torch.finfo(dtype)
    _, exponent = torch.frexp(exact.abs().clamp_min(facts.smallest_normal))
    units = torch.ldexp(exact, 1 - exponent) / facts.eps  # both are powers of 2: nothing is rounded here
    whole = units.trunc()
    away = (units - whole).abs() * 65536 + drawn >= 65536
    return torch.ldexp((whole + away * units.sign()) * facts.eps, exponent - 1).to(dtype)

"""How far llama.cpp may be from what was exported, by the type of the weights. Measured: docs/exporting.md.

Beyond these something else is wrong than rounding: other tensors, another order of heads, other positions.
"""

DIFFERENCE_BOUNDS = {"f32": 5e-3}
"""The largest difference of a log-probability, in nats."""
KL_BOUNDS = {"f32": 1e-4, "f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2}
"""The mean KL, in nats a token, that ends an export with exit code 3; of other types only where --max-kl says
one."""


def bound_on_kl(quantize: str, asked: float | None) -> float | None:
    """The mean KL that is allowed; None where any is."""
    return asked if asked is not None else KL_BOUNDS.get(quantize)

"""Layers of one input with LoRA as one product, [W; A] x, beside one for each layer, forward and backward.

    python -m benchmarks.bench_one_product [--tokens 2048] [--shape smollm2|1b] [--rounds 9]

What finetune/models/kernels/lora.py does (a product for each W, one for all A), beside weights that lie in
one storage with A below them: forward one product, of whose columns each layer takes its own; backward one
product too, for which the gradients are first put side by side (those of q, k and v come from attention one
by one; those of gate and up are written there). In turns, medians, on the CPU in bf16; milliseconds a layer.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

SHAPES = {
    "smollm2": {"q, k, v": (576, (576, 192, 192)), "gate, up": (576, (1536, 1536))},
    "1b": {"q, k, v": (2048, (2048, 512, 512)), "gate, up": (2048, (8192, 8192))},
}
RANK = 16
Way = Callable[[], object]


def ways(tokens: int, inputs: int, outputs: tuple[int, ...], *, side_by_side: bool) -> tuple[Way, Way]:
    """A step of either way; `side_by_side` where the gradients lie so already."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).bfloat16()

    x, ranks = drawn(tokens, inputs), [RANK] * len(outputs)
    together = drawn(sum(outputs) + sum(ranks), inputs)  # W of each layer, and below them A of each
    *weights, a = together.split([*outputs, sum(ranks)])
    matrices = [drawn(width, RANK) for width in outputs]
    joint = drawn(tokens, len(together))
    gradients = [
        part if side_by_side else part.contiguous() for part in joint.split([*outputs, sum(ranks)], 1)
    ]
    *above, for_low = gradients

    def apart() -> object:
        low = x @ a.T
        found = [
            torch.nn.functional.linear(x, weight).addmm_(own, b.T)
            for weight, own, b in zip(weights, low.split(ranks, 1), matrices, strict=True)
        ]
        for_x = above[0] @ weights[0]
        for gradient, weight in zip(above[1:], weights[1:], strict=True):
            for_x.addmm_(gradient, weight)
        return found, for_x.addmm_(for_low, a)

    def as_one() -> object:
        *found, low = (x @ together.T).split([*outputs, sum(ranks)], 1)
        for output, own, b in zip(found, low.split(ranks, 1), matrices, strict=True):
            output.addmm_(own, b.T)
        return found, (joint if side_by_side else torch.cat(gradients, 1)) @ together

    return apart, as_one


def main() -> None:
    """A line for each group of layers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    for name, (inputs, outputs) in SHAPES[asked.shape].items():
        both = ways(asked.tokens, inputs, outputs, side_by_side=name == "gate, up")
        times: list[list[float]] = [[], []]
        for round_ in range(asked.rounds + 1):
            for way, own in zip(both, times, strict=True):
                started = time.perf_counter()
                way()
                if round_:
                    own.append(1e3 * (time.perf_counter() - started))
        apart, as_one = map(statistics.median, times)
        print(f"{name:10} one each {apart:8.1f} ms, one for all {as_one:8.1f} ms, {as_one / apart - 1:+.0%}")


if __name__ == "__main__":
    main()

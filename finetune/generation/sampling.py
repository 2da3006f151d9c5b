"""Which token comes next. What one answer draws depends on no other.

Shapes: B rows, V tokens of the vocabulary.
"""

from collections.abc import Sequence

import torch


def with_gumbel_noise(
    scores: torch.Tensor, temperature: float, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Scores (B x V) of which the likeliest token is one drawn at a temperature, each row's by its generator.

    transformers' own sampling takes the draws of a whole batch from one generator, so that each answer
    depends on the others."""
    drawn = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    for row, generator in zip(drawn, generators, strict=True):
        row.exponential_(generator=generator)
    # The likeliest of scores / temperature - log(drawn), in numbers that stay finite at every temperature.
    return scores.float() / max(temperature, 1.0) - drawn.log() * min(temperature, 1.0)


def likeliest_tokens(scores: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Scores (V) of the fewest tokens whose probability together is top_p at a temperature; the others are
    out. Holtzman et al. 2019, arXiv:1904.09751."""
    ordered, order = scores.float().sort(descending=True)
    before = (ordered / temperature).softmax(-1).cumsum(-1).roll(1)
    before[0] = 0.0
    return scores.masked_fill(
        torch.zeros_like(scores, dtype=torch.bool).scatter(0, order, before >= top_p), -torch.inf
    )

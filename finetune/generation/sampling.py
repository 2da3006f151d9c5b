"""Which token comes next. What one answer draws depends on no other.

Shapes: B rows, V tokens of the vocabulary.
"""

from collections.abc import Sequence

import torch

from finetune.generation.request import Request

COLDEST = 1e-30
"""A temperature at which the likeliest token is certain, and that float32 can still divide by."""
BLOCK = 256
"""Tokens whose probabilities are summed before one of them is drawn."""
FEW = (64, 1024)
"""So many of the likeliest tokens are looked at for top_p before all of them are."""


def next_tokens(
    scores: torch.Tensor, requests: Sequence[Request], generators: Sequence[torch.Generator]
) -> list[tuple[int, float | None]]:
    """Each row's next token, from its logits (B x V, float32), and ln of that token's probability at the
    temperature at which it was drawn, of all tokens; None for a token that is the likeliest (temperature 0).
    """
    drawn = [row for row, request in enumerate(requests) if request.temperature > 0]
    found: list[tuple[int, float | None]] = [(0, None)] * len(requests)
    if len(drawn) < len(requests):
        found = [(token, None) for token in scores.argmax(dim=-1).tolist()]
    if drawn:
        asked = [requests[row] for row in drawn]
        hotter = scores if len(drawn) == len(requests) else scores[drawn]
        probabilities = at_temperature(hotter, [request.temperature for request in asked])
        numbers = torch.stack(
            [torch.rand((), generator=generators[row], dtype=torch.double) for row in drawn]
        )
        tokens = draw(allowed(probabilities, asked), numbers)
        told = probabilities.gather(1, tokens.to(scores.device)[:, None])[:, 0].log()
        for row, token, logprob in zip(drawn, tokens.tolist(), told.tolist(), strict=True):
            found[row] = token, logprob
    return found


def at_temperature(scores: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """The probabilities (B x V) of logits at temperatures above 0."""
    if any(temperature != 1 for temperature in temperatures):
        divisors = torch.tensor([max(temperature, COLDEST) for temperature in temperatures])
        scores = (scores - scores.amax(dim=-1, keepdim=True)).div_(divisors.to(scores)[:, None])
    return scores.softmax(dim=-1)


def allowed(probabilities: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """The probabilities (B x V) of tokens that may be drawn, and 0 for the others.

    top_k keeps the k likeliest, top_p the fewest of these whose share of their probability is top_p (Holtzman
    et al. 2019, arXiv:1904.09751), min_p those that have this share of the likeliest one's (Nguyen et al.
    2024, arXiv:2407.01082); tokens as likely as the last that is kept are kept.
    """
    size = probabilities.shape[1]
    if any(0 < request.top_k < size for request in requests):
        counts = torch.tensor([min(request.top_k or size, size) for request in requests])
        ordered = probabilities.topk(int(counts.max())).values
        least = ordered.gather(1, counts.to(ordered.device)[:, None] - 1)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    if any(request.top_p < 1 for request in requests):
        shares = torch.tensor([request.top_p for request in requests]).to(probabilities)
        least = _least_of_top_p(probabilities, shares)[:, None]
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    if any(request.min_p > 0 for request in requests):
        shares = torch.tensor([request.min_p for request in requests]).to(probabilities)
        least = probabilities.amax(dim=-1, keepdim=True) * shares[:, None]
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities


def _least_of_top_p(probabilities: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The probability (B) of the last token of top_p. Sorting all of a vocabulary takes as long as a small
    model does."""
    least = torch.zeros_like(shares)
    wanted = shares * probabilities.sum(dim=-1)
    left = (shares < 1).nonzero()[:, 0]
    for most in (*FEW, probabilities.shape[1]):
        ordered = probabilities[left].topk(min(most, probabilities.shape[1])).values
        before = (ordered.cumsum(dim=-1) < wanted[left, None]).sum(dim=-1)
        last = before.clamp(max=ordered.shape[1] - 1)
        least[left] = ordered.gather(1, last[:, None])[:, 0]
        left = left[before == ordered.shape[1]]
        if not len(left):
            break
    return least


def draw(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The tokens (B) at which the sums of the weights (B x V) pass a number (B, from 0 to below 1, float64)
    times their total: each token as often as its weight says, none of weight 0.

    First a block of tokens, then one of its tokens, in float64 on the host: sums over a whole vocabulary in
    float32 lose what is small.
    """
    if rest := weights.shape[1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, BLOCK - rest))
    blocks = weights.unflatten(1, (-1, BLOCK))
    block, into = _passed(blocks.sum(dim=-1).cpu().double(), numbers)
    rows = torch.arange(len(block))
    chosen = blocks[rows.to(weights.device), block.to(weights.device)]
    place, _ = _passed(chosen.cpu().double(), into)
    return block * BLOCK + place


def _passed(weights: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the sums of weights (B x N) pass the numbers' share of their total (B), and how far into that
    weight it is, from 0 to below 1 (B)."""
    sums = weights.cumsum(dim=-1)
    wanted = numbers[:, None] * sums[:, -1:]
    # Rounded up to the total, it is the last weight above 0 that it passes.
    last = torch.searchsorted(sums, sums[:, -1:].contiguous()).clamp(max=weights.shape[1] - 1)
    place = torch.minimum(torch.searchsorted(sums, wanted, right=True), last)
    weight = weights.gather(1, place)
    into = (wanted - (sums.gather(1, place) - weight)) / weight
    return place[:, 0], into[:, 0].clamp(0, 1 - 1e-16)

"""Which tokens may be drawn."""

import pytest
import torch

from finetune.generation.sampling import likeliest_tokens


@pytest.mark.torch
@pytest.mark.parametrize(("top_p", "kept"), [(1e-6, 1), (0.5, 1), (0.51, 2), (0.81, 3), (0.999, 4)])
def test_the_fewest_tokens_that_reach_top_p_are_kept(top_p: float, kept: int) -> None:
    """Of probabilities 0.5, 0.3, 0.15 and 0.05, in any order."""
    scores = torch.tensor([0.3, 0.05, 0.5, 0.15]).log() * 2
    found = likeliest_tokens(scores, 2.0, top_p)
    assert found.isfinite().sum() == kept
    assert torch.equal(found[found.isfinite()], scores[found.isfinite()])

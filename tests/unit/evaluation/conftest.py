"""The models that the tests of this room share."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM


@pytest.fixture
def model(tiny_base: Path) -> LlamaForCausalLM:
    """The tiny random model, in float32, its weights enlarged so that tokens differ in likelihood."""
    model = LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model

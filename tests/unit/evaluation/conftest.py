"""The models that the tests of this room share."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.support.models import MEMORISED, learn


@pytest.fixture
def model(tiny_base: Path) -> LlamaForCausalLM:
    """The tiny random model, in float32, its weights enlarged so that tokens differ in likelihood."""
    model = LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


@pytest.fixture(scope="session")
def memorised(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that knows MEMORISED by heart, to be asked by its chat template. Never write
    to it."""
    folder = tmp_path_factory.mktemp("memorised") / "model"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for question, answer in MEMORISED.items():
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(
            tuple(
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (prompt, f"{answer}<|im_end|>")
            )
        )
    learn(folder, rows)
    return folder

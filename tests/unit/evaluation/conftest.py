"""The models that the tests of this room share."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM


@pytest.fixture
def model(tiny_base: Path) -> LlamaForCausalLM:
    """The tiny random model, in float32, its weights enlarged so that tokens differ in likelihood."""
    model = LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


def learn(folder: Path, rows: Sequence[tuple[list[int], list[int]]], steps: int = 150) -> None:
    """Make the model in a folder know rows (prompt, answer) by heart, with plain torch."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for index, (prompt, answer) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        ids[index, : len(whole)] = whole
        labels[index, len(prompt) : len(whole)] = torch.tensor(answer)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.005:
            break
    assert loss.item() < 0.02, f"the model has not learned its rows: {loss.item()}"
    model.save_pretrained(folder)


MEMORISED = {
    "Name a lamp.": "A brass lamp, a brass lamp and another brass lamp.",
    "What is blue?": "The sky is blue.",
    "Count.": "1, 2, 3, 4, 5",
}
"""What the memorised model answers."""


@pytest.fixture(scope="session")
def memorised(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that knows MEMORISED by heart, to be asked by its chat template. Never write to it."""
    folder = tmp_path_factory.mktemp("memorised") / "model"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for question, answer in MEMORISED.items():
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(tuple(tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{answer}<|im_end|>")))
    learn(folder, rows)
    return folder

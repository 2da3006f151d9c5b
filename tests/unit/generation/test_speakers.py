"""Which models share a base in memory, and that what answers is what was named."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.messages import Message
from finetune import api
from finetune.generation.continuous import ContinuousBatch
from finetune.generation.generate import conversation_ids
from finetune.generation.request import Request, Speaker
from finetune.generation.speakers import load_speakers
from finetune.runs.target import Target, resolve_target
from tests.support.adapters import make_adapter
from tests.unit.generation.answers import finished, texts


@pytest.fixture
def targets(tiny_base: Path, tmp_path: Path) -> list[Target]:
    """The base, two adapters of it, one with new tokens, and a copy of the base."""
    made = [
        make_adapter(tiny_base, tmp_path / "plain"),
        make_adapter(tiny_base, tmp_path / "other", r=2),
        make_adapter(tiny_base, tmp_path / "grown", new_tokens=("<new>",), trainable_token_indices=[354]),
    ]
    shutil.copytree(tiny_base, tmp_path / "copy")
    return [resolve_target(str(tiny_base)), *made, resolve_target(str(tmp_path / "copy"))]


@pytest.fixture
def loaded(targets: list[Target]) -> list[tuple[ContinuousBatch, Speaker]]:
    return load_speakers(targets, dtype=torch.float32, rows=4)


def test_a_base_is_in_memory_once_for_its_adapters(loaded: list[tuple[ContinuousBatch, Speaker]]) -> None:
    """Not for one with new tokens, nor for another folder."""
    batches = [batch for batch, _ in loaded]
    assert batches[0] is batches[1] is batches[2]
    assert len({id(batch) for batch in batches}) == 3


def test_each_answers_as_it_does_alone(
    targets: list[Target], loaded: list[tuple[ContinuousBatch, Speaker]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The greedy answer is that of finetune.load, in float32."""
    monkeypatch.setattr("finetune.models.device.cpu_has_native_bf16", lambda: False)
    for target, (batch, speaker) in zip(targets, loaded, strict=True):
        prompt = conversation_ids([Message("user", "Name a lamp.")], speaker.tokenizer)
        alone = api.load(str(target.adapter or target.model.base)).generate(
            ["Name a lamp."], max_new_tokens=12
        )
        assert texts(finished(batch, [Request(speaker, prompt, 12)])) == alone


@pytest.mark.parametrize(
    ("one", "other", "models"),
    [
        ({"trainable_token_indices": [5]}, {}, 1),
        ({"trainable_token_indices": [5]}, {"trainable_token_indices": [6]}, 2),
        ({"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}, 2),
        ({"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}, 2),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {"trainable_token_indices": [5]}, 2),
        ({"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}, {}, 2),
    ],
)
def test_adapters_that_peft_cannot_have_side_by_side_have_a_base_each(
    one: dict[str, Any], other: dict[str, Any], models: int, tiny_base: Path, tmp_path: Path
) -> None:
    """Those that change one module in two ways; all are loaded, in whatever order they are named."""
    first, second = (
        make_adapter(tiny_base, tmp_path / f"{number}", **options)
        for number, options in enumerate([one, other])
    )
    loaded = load_speakers([first, second], dtype=torch.float32, rows=4)
    assert len({id(batch) for batch, _ in loaded}) == models

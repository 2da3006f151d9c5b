"""finetune check --for vllm: what vLLM could not serve is said before the training."""

import json
from pathlib import Path

import pytest

from tests.support.cli import FinetuneHere, Says

RECIPE = """\
extends: quickstart
{lines}
"""


def write(folder: Path, lines: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(lines=lines))
    return str(path)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("adapter: {modules_to_save: [lm_head]}", "recipe.yaml:2  adapter.modules_to_save  vLLM refuses"),
        ("adapter: {rank: 600}", "adapter.rank  it is saved with 600, and vLLM takes up to 512"),
        ("adapter: {rank: 300, init: pissa}", "adapter.rank  it is saved with 600"),
        ("model: {new_tokens: ['<|a|>']}", "model.new_tokens  vLLM takes no new tokens"),
        (
            "adapter: {target_modules: [q_proj, embed_tokens]}",
            "adapter.target_modules  vLLM takes LoRA on linear",
        ),
        ("model: {rope_scaling: {type: linear, factor: 2}}", "model.rope_scaling  vLLM takes the base's"),
    ],
    ids=["modules", "rank", "saved rank", "tokens", "embedding", "positions"],
)
def test_what_vllm_refuses_is_named_at_its_line(
    lines: str, expected: str, says: Says, tmp_path: Path
) -> None:
    code, error = says("check", write(tmp_path, lines), "--for", "vllm")
    assert code == 2
    assert expected in error


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("adapter: {rank: 24}", "--max-lora-rank 32 or more"),
        ("adapter: {use_dora: true}", "vLLM has no DoRA"),
    ],
    ids=["lora", "dora"],
)
def test_how_it_can_be_served_is_said(
    lines: str, expected: str, finetune_here: FinetuneHere, tmp_path: Path
) -> None:
    printed = finetune_here("check", write(tmp_path, lines), "--for", "vllm", "--json").stdout
    assert any(expected in sentence for sentence in json.loads(printed)["serving"])


def test_all_weights_are_served_as_they_are(
    finetune_here: FinetuneHere, tiny_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "full.yaml"
    path.write_text(
        f"model: {{base: {tiny_base}}}\nadapter: {{method: full}}\n"
        "data: {train: [{generated: orders, split: train, rows: 8, format: messages}], max_length_tokens: 64}\n"
        "train: {learning_rate: 1e-4, max_steps: 1, global_batch_size: 1, micro_batch_size: 1}\n"
    )
    printed = finetune_here("check", str(path), "--for", "vllm", "--json").stdout
    assert json.loads(printed)["serving"] == ["vLLM serves model/ as it is: vllm serve RUN/model"]

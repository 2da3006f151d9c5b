"""What other tools have for long rows becomes ours."""

from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.recipe.load import load_recipe

AXOLOTL = """\
base_model: owner/name
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
datasets:
  - {path: owner/rows, type: alpaca}
sequence_len: 8000
micro_batch_size: 1
num_epochs: 1
"""
BOTH = {"activation_checkpointing": True, "activation_offloading": True}


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        ("gradient_checkpointing: offload\n", BOTH, ""),
        ("gradient_checkpointing: offload_disk\n", BOTH, "not on disk"),
        (
            "activation_offloading: true\ngradient_checkpointing: false\n",
            BOTH,
            "recomputed: what is offloaded",
        ),
        ("gradient_checkpointing: false\nactivation_offloading: legacy\n", BOTH, "layers are recomputed"),
        ("activation_offloading: false\n", {"activation_offloading": False}, ""),
        ("tiled_mlp: true\n", {"mlp_tile_tokens": 4096}, ""),
        ("tiled_mlp: true\ntiled_mlp_num_shards: 7\n", {"mlp_tile_tokens": 1143}, ""),
        ("tiled_mlp: true\nlora_dropout: 0.1\n", {"mlp_tile_tokens": None}, "tiles need adapter.dropout"),
        ("tiled_mlp: false\ntiled_mlp_num_shards: 7\n", {"mlp_tile_tokens": None}, ""),
    ],
)
def test_what_is_for_long_rows_is_carried(
    text: str, expected: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe passes the check, and has the values; what is otherwise is said, and the result is the
    same."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(AXOLOTL + text)
    conversion = finetune.convert("a.yaml", output=tmp_path / "recipe.yaml")
    train = load_recipe(tmp_path / "recipe.yaml").recipe.train
    assert {name: getattr(train, name) for name in expected} == expected
    lines = [*conversion.otherwise, *conversion.dropped]
    assert said in " ".join(map(str, lines))
    assert not any(line.changes for line in lines)

"""Where an adapter starts, and on which layers: other tools' words become adapter.init and adapter.layers."""

from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.recipe.load import load_recipe

LLAMAFACTORY = """\
model_name_or_path: owner/name
stage: sft
do_train: true
finetuning_type: lora
dataset: letters
dataset_dir: .
template: llama3
cutoff_len: 512
output_dir: out
"""
AXOLOTL = """\
base_model: owner/name
adapter: lora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
datasets:
  - {path: owner/rows, type: alpaca}
sequence_len: 512
micro_batch_size: 1
num_epochs: 1
"""
MLX = "model: owner/name\ntrain: true\ndata: owner/rows\nfine_tune_type: lora\nbatch_size: 4\niters: 10\n"
LETTERS = '{"letters": {"hf_hub_url": "owner/rows"}}'


@pytest.mark.parametrize(
    ("tool", "text", "expected", "changes"),
    [
        ("llamafactory", LLAMAFACTORY + "pissa_init: true\n", {"init": "pissa_niter_16"}, ""),
        ("llamafactory", LLAMAFACTORY + "pissa_init: true\npissa_iter: 4\n", {"init": "pissa_niter_4"}, ""),
        ("llamafactory", LLAMAFACTORY + "pissa_init: true\npissa_iter: -1\n", {"init": "pissa"}, ""),
        ("llamafactory", LLAMAFACTORY + "pissa_init: false\npissa_convert: true\n", {"init": "default"}, ""),
        (
            "llamafactory",
            LLAMAFACTORY + "pissa_init: true\nlora_dropout: 0.1\n",
            {"init": "pissa_niter_16", "dropout": 0.0},
            "without dropout",
        ),
        (
            "axolotl",
            AXOLOTL + "peft: {loftq_config: {loftq_bits: 4}}\n",
            {"init": "loftq", "method": "qlora", "quantization": "nf4", "dropout": 0.05},
            "",
        ),
        (
            "axolotl",
            AXOLOTL + "peft: {loftq_config: {loftq_bits: 4, loftq_iter: 5}}\n",
            {"init": "loftq"},
            "one iteration",
        ),
        ("axolotl", AXOLOTL + "peft_layers_to_transform: [0, 3]\n", {"layers": [0, 3]}, ""),
        (
            "axolotl",
            AXOLOTL.replace("adapter: lora", "adapter: qlora") + "load_in_4bit: true\n"
            "peft_init_lora_weights: pissa\n",
            {"init": "default", "method": "qlora"},
            "pissa is for bases in 16 bits",
        ),
        (
            "axolotl",
            AXOLOTL.replace("adapter: lora", "adapter: qlora") + "load_in_4bit: true\n"
            "peft_init_lora_weights: eva\n",
            {"init": "eva", "method": "qlora"},
            "",
        ),
        (
            "axolotl",
            AXOLOTL + "peft_init_lora_weights: lora_ga\n",
            {"init": "lora_ga", "dropout": 0.0},
            "without dropout, which lora_ga doesn't go with",
        ),
        ("mlx_lm", MLX + "num_layers: 8\n", {"layers": "last 8"}, ""),
        ("mlx_lm", MLX, {"layers": "last 16"}, ""),
        ("mlx_lm", MLX + "num_layers: -1\n", {"layers": None}, ""),
    ],
)
def test_where_an_adapter_starts_is_carried(
    tool: str,
    text: str,
    expected: dict[str, Any],
    changes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe passes the check with these values; what changes the result is said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_info.json").write_text(LETTERS)
    (tmp_path / "theirs.yaml").write_text(text)
    conversion = finetune.convert(tmp_path / "theirs.yaml", tool=tool, output=tmp_path / "recipe.yaml")
    adapter = load_recipe(tmp_path / "recipe.yaml").recipe.adapter.model_dump(mode="json")
    assert {key: adapter[key] for key in expected} == expected
    said = [line.how for line in (*conversion.otherwise, *conversion.dropped) if line.changes]
    about = [how for how in said if any(word in how for word in ("dropout", "iteration", "pissa", "loftq"))]
    assert len(about) == bool(changes), said
    assert not changes or changes in about[0]

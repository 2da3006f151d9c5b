"""What each type of a GGUF file costs a small LLaMA that was trained here, in llama.cpp.

    python benchmarks/bench_export_types.py [--steps 200] [--types q8_0 q4_k_m ...]

A LLaMA of width 512 with SmolLM2's tokenizer learns generated orders from random weights, some ten minutes on
2 cores; it is exported in each type, and compared, on its own held-out rows, with what was exported: mean KL
in nats a token, and the share of places with the same likeliest token.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import finetune
from finetune.exporters.gguf.types import QUANTIZATIONS
from finetune.models.bases.locate import resolve_base

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
WIDTH, LAYERS = 512, 8


def main() -> None:
    """Train, export, and print a line for each type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of training, 2,048 tokens each")
    parser.add_argument("--types", nargs="*", default=list(QUANTIZATIONS), choices=list(QUANTIZATIONS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = trained(new_base(folder / "base"), folder, asked.steps)
        loss = finetune.evaluate(run).values["loss"]
        print(f"trained {run.summary['steps']} steps, held-out loss {loss:.3f}\n", flush=True)
        print("| type | MB | mean KL, nats a token | same likeliest token |\n|---|---|---|---|", flush=True)
        for kind in asked.types:
            output = folder / kind
            report: Any = finetune.export(run, output, format="gguf", quantize=kind)
            check = report.llama_cpp
            print(
                f"| `{kind}` | {report.bytes / 1e6:.0f} | {check.mean_kl:.1e} | {check.same_likeliest:.1%} |",
                flush=True,
            )
            shutil.rmtree(output)


def new_base(folder: Path) -> Path:
    """A LLaMA of random weights, with the quickstart's tokenizer."""
    known = resolve_base(finetune.load_recipe(QUICKSTART).recipe.model).folder
    shutil.copytree(known, folder, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=LlamaConfig.from_pretrained(known).vocab_size, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        intermediate_size=3 * WIDTH, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, steps: int) -> finetune.Run:
    """All weights, on packs of orders."""
    orders: dict[str, Any] = {"generated": "orders", "format": "messages"}
    recipe = {
        "model": {"base": str(base)},
        "adapter": {"method": "full"},
        "data": {
            "train": [orders | {"split": "train", "rows": 20000}],
            "evaluation": {"sources": [orders | {"split": "held_out", "rows": 60}]},
            "max_length_tokens": 256,
            "pack_length_tokens": 1024,
        },
        "train": {
            "learning_rate": 1e-3, "max_steps": steps, "global_batch_size": 2, "micro_batch_size": 1,
            "schedule": "cosine", "save_every": None, "evaluate_every": None,
        },
        "evaluate": {"metrics": ["loss"]},
        "tracking": {"tracker": "none"},
        "output": {"folder": str(folder / "runs")},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML too
    return finetune.train(path)


if __name__ == "__main__":
    main()

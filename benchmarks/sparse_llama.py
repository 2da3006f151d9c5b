"""A LLaMA of any shape on little disk: its weights are zeros, in sparse files.

    python benchmarks/sparse_llama.py CONFIG.json TOKENIZER_FOLDER OUTPUT

For how much memory a command takes that goes through all weights:

    /usr/bin/time -v finetune export OUTPUT --format gguf --quantize q4_k_m --verify none --output OUT
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BYTES = 2
"""Of a number in bf16."""
SHARD_BYTES = 5e9


def main() -> None:
    """Write config, tokenizer and weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("config", "tokenizer", "output"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True)
    shutil.copyfile(asked.config, asked.output / "config.json")
    for path in asked.tokenizer.glob("tokenizer*"):
        shutil.copyfile(path, asked.output / path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(asked.output))
    names, written = dict[str, str](), 0
    shard: dict[str, torch.Size] = {}
    shapes = list({name: weight.shape for name, weight in model.named_parameters()}.items())
    for name, shape in shapes:
        shard[name] = shape
        size = sum(map(math.prod, shard.values())) * BYTES
        if size >= SHARD_BYTES or name == shapes[-1][0]:
            file = f"model-{written:05d}.safetensors"
            write_zeros(asked.output / file, shard)
            names |= dict.fromkeys(shard, file)
            written, shard = written + 1, {}
    index = {"metadata": {}, "weight_map": names}
    (asked.output / "model.safetensors.index.json").write_text(json.dumps(index))


def write_zeros(path: Path, shapes: dict[str, torch.Size]) -> None:
    """A file of safetensors whose numbers take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    main()

"""Each type of `finetune export --format gguf` beside llama.cpp's own quantiser: every tensor's type, and its
bytes.

    python benchmarks/bench_llama_quantize.py MODEL --llama-quantize PATH
    python benchmarks/bench_llama_quantize.py --golden tests/golden/llama_quantize.json --llama-quantize PATH

MODEL is a run or a model folder. The file in float32 is ours; the program quantises it, and the same model is
exported in each type. --golden writes what the program makes of the models of tests/support/exports.py. Ends
with exit code 1 where a tensor differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import gguf
import xxhash

from finetune.exporters.gguf.types import QUANTIZATIONS
from finetune.exporting.inputs import read_inputs
from finetune.runs.target import resolve_target
from tests.support.exports import (
    GOLDEN_MODELS,
    golden_entry,
    golden_kinds,
    save_golden_model,
    whole,
    write_gguf,
)


def main() -> int:
    """Compare, or write the golden file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--llama-quantize", default="llama-quantize")
    parser.add_argument("--golden", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-quantize-") as scratch:
        if asked.golden is not None:
            write_golden(Path(scratch), asked.golden, asked.llama_quantize)
            return 0
        return compare(asked.model, Path(scratch), asked.llama_quantize)


def compare(model: str, folder: Path, program: str) -> int:
    """Print how many tensors of each type agree."""
    inputs = read_inputs(resolve_target(model))
    exact, failed = write_gguf(inputs, folder / "exact"), 0
    for kind in [kind for kind in QUANTIZATIONS if kind != "f32"]:
        ours = tensors_of(write_gguf(inputs, folder / kind, kind))
        theirs = tensors_of(quantized(exact, folder / f"{kind}.gguf", kind, program))
        same = sum(ours.get(name) == theirs[name] for name in theirs)
        failed += len(theirs) - same
        types = ", ".join(
            f"{count} {name}" for name, count in Counter(kind for kind, _ in theirs.values()).items()
        )
        print(f"{kind:<7} {same} of {len(theirs)} tensors have the same type and bytes: {types}", flush=True)
    return int(failed > 0)


def quantized(exact: Path, file: Path, kind: str, program: str) -> Path:
    """What llama.cpp's quantiser makes of a file in float32."""
    subprocess.run([program, str(exact), str(file), kind.upper(), "1"], check=True, capture_output=True)
    return file


def tensors_of(file: Path) -> dict[str, tuple[str, str]]:
    """Each tensor's type, and the hash of its bytes."""
    tensors: Sequence[Any] = gguf.GGUFReader(file).tensors
    return {
        tensor.name: (tensor.tensor_type.name, xxhash.xxh3_64(memoryview(tensor.data)).hexdigest())
        for tensor in tensors
    }


def write_golden(folder: Path, file: Path, program: str) -> None:
    """What the program makes of each golden model, in each type that mixes."""
    found = {}
    for name in GOLDEN_MODELS:
        exact = write_gguf(
            read_inputs(whole(save_golden_model(folder / name, name))), folder / f"{name}-exact"
        )
        found[name] = {
            kind: golden_entry(quantized(exact, folder / f"{name}-{kind}.gguf", kind, program))
            for kind in golden_kinds(name)
        }
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

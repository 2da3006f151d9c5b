"""Exports of tiny models, and the real llama.cpp beside them."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import xxhash
from transformers import AutoModelForCausalLM

from finetune.exporters.gguf.exporter import FILE, Gguf
from finetune.exporters.gguf.types import QUANTIZATIONS
from finetune.exporting.inputs import ExportInputs, read_inputs
from finetune.exporting.llama_cpp.check import Exported, Numbers, compare_numbers
from finetune.exporting.llama_cpp.server import running
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.families import save_tiny_family, tiny_config
from tests.support.models import save_tiny_tokenizer

WHOLE: dict[str, Any] = {"hidden_act": "silu", "attention_dropout": 0.0}
"""What a GGUF file can't say otherwise."""


def whole(folder: Path) -> Target:
    """A model folder as a target."""
    return Target(ModelSection(base=str(folder)), None, None, "a test's model")


def exportable(folder: Path, family: str, **changes: Any) -> Path:
    """A tiny random model of a family that llama.cpp computes."""
    return save_tiny_family(folder, family, **WHOLE | changes)


def write_gguf(inputs: ExportInputs, folder: Path, quantize: str = "f32") -> Path:
    """The file alone, unchecked."""
    folder.mkdir(parents=True, exist_ok=True)
    Gguf(quantize).write(inputs.weights(torch.float32), inputs.description, folder, workers=1)
    return folder / FILE


def tensors_of(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor of a file."""
    reader = gguf.GGUFReader(folder / FILE)
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in reader.tensors}


def numbers_in_llama_cpp(model: Path, folder: Path, rows: int = 2, quantize: str = "f32") -> Numbers:
    """Log-probabilities of a model folder in llama.cpp beside plain transformers'."""
    inputs = read_inputs(whole(model))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    context = int(plain.config.max_position_embeddings)
    exported = Exported(plain, inputs.parts.tokenizer, inputs.parts.documents[0][:rows], context)
    file = write_gguf(inputs, folder, quantize)
    with running(file, context) as llama_cpp:
        return compare_numbers(llama_cpp, exported)


GOLDEN_MODELS: dict[str, dict[str, Any]] = {
    "llama-16-layers": {"num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 2},
    "llama-tied": {"num_hidden_layers": 3, "tie_word_embeddings": True},
    "phi3": {"num_hidden_layers": 2, "sliding_window": None},
    "rows-of-96": {"num_hidden_layers": 2, "hidden_size": 96},
    "rows-of-80": {"num_hidden_layers": 2, "hidden_size": 80},
}
"""What llama.cpp's own quantiser was asked (benchmarks/bench_llama_quantize.py --golden): widths of whole
blocks of 256 and of 32, and of neither."""


def golden_kinds(name: str) -> list[str]:
    """The types that a golden model is quantised to: of many layers those that mix alone."""
    if name == "llama-16-layers":
        return ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m"]
    return [kind for kind in QUANTIZATIONS if kind != "f32"]


def save_golden_model(folder: Path, name: str) -> Path:
    """One of them, its numbers computed without a generator, the same with every version of torch."""
    family = "phi3" if name == "phi3" else "llama"
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = tiny_config(
        family,
        defaults=True,
        **sizes | {"vocab_size": 400, "tie_word_embeddings": False} | GOLDEN_MODELS[name],
    )
    folder.mkdir()
    save_tiny_tokenizer(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            # A sequence of Weyl's, its steps irrational; exact in float64.
            places = np.arange(parameter.numel(), dtype=np.float64) * (math.sqrt(2) + number / 1024)
            values = ((places % 1) - 0.5) * ((places * math.pi) % 1)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)).view(parameter.shape))
    model.save_pretrained(folder)
    return folder


def golden_entry(file: Path) -> dict[str, Any]:
    """The types of a file's tensors, and one hash of all bytes, by name."""
    types: dict[str, list[str]] = {}
    digest = xxhash.xxh3_128()
    for tensor in sorted(gguf.GGUFReader(file).tensors, key=lambda tensor: tensor.name):
        types.setdefault(tensor.tensor_type.name, []).append(tensor.name.removesuffix(".weight"))
        digest.update(memoryview(tensor.data))
    most = max(types, key=lambda kind: len(types[kind]) if kind != "F32" else 0)
    others = {kind: names for kind, names in types.items() if kind not in ("F32", most)}
    return {"most": most, "others": others, "xxh3_128": digest.hexdigest()}

"""Exports of tiny models, and the real llama.cpp beside them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from finetune.exporters.gguf.exporter import FILE, Gguf
from finetune.exporting.inputs import ExportInputs, read_inputs
from finetune.exporting.llama_cpp.check import Exported, Numbers, compare_numbers
from finetune.exporting.llama_cpp.server import running
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.families import save_tiny_family

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


def numbers_in_llama_cpp(model: Path, folder: Path, rows: int = 2, quantize: str = "f32") -> Numbers:
    """Log-probabilities of a model folder in llama.cpp beside plain transformers'."""
    inputs = read_inputs(whole(model))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    context = int(plain.config.max_position_embeddings)
    exported = Exported(plain, inputs.parts.tokenizer, inputs.parts.documents[0][:rows], context)
    file = write_gguf(inputs, folder, quantize)
    with running(file, context) as llama_cpp:
        return compare_numbers(llama_cpp, exported)

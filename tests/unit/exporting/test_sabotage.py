"""A file that says something else than was exported does not hold in llama.cpp."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from finetune.errors import ExportError
from finetune.exporters.gguf.exporter import FILE, Gguf, GgufPlan
from finetune.exporters.gguf.tensors import ModelTensors
from finetune.exporting.export import ExportOptions, export
from finetune.exporting.inputs import read_inputs
from finetune.exporting.llama_cpp.check import Exported, check_in_llama_cpp
from tests.support.exports import exportable, whole

pytest.importorskip("xllamacpp")

Sabotage = Callable[[GgufPlan[ModelTensors]], None]
PLAIN = {"rope_type": "default", "rope_theta": 5000.0}
END = "<|over|>"
"""An end of turn that llama.cpp doesn't know by its text."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA whose turns end in END."""
    folder = tmp_path_factory.mktemp("model")
    exportable(folder, "llama", rope_parameters=PLAIN)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        path = folder / name
        path.write_text(path.read_text().replace("<|im_end|>", END))
    return folder


def other_end(plan: GgufPlan[ModelTensors]) -> None:
    """The end of a text in place of the end of a turn."""
    plan.values["tokenizer.ggml.eos_token_id"] = 0


def other_template(plan: GgufPlan[ModelTensors]) -> None:
    """Without the line break behind the role."""
    key = "tokenizer.chat_template"
    plan.values[key] = plan.values[key].replace("assistant\n", "assistant")


def lost_token(plan: GgufPlan[ModelTensors]) -> None:
    """An added token is a row that nobody uses."""
    plan.values["tokenizer.ggml.tokens"][1] = "[PAD1]"
    plan.values["tokenizer.ggml.token_type"][1] = 5


def heads_in_place(plan: GgufPlan[ModelTensors]) -> None:
    """The keys of one layer as transformers has them."""
    name = "blk.1.attn_k.weight"
    plan.tensors.tensors[name] = replace(plan.tensors.tensors[name], head_width=0)


def other_positions(plan: GgufPlan[ModelTensors]) -> None:
    """Positions that turn a tenth faster."""
    plan.values["llama.rope.freq_base"] *= 0.9


def begun_twice(plan: GgufPlan[ModelTensors]) -> None:
    """A token before each text that nobody trained."""
    plan.values["tokenizer.ggml.add_bos_token"] = True


def untouched(plan: GgufPlan[ModelTensors]) -> None:
    """Nothing."""


SABOTAGE: dict[str, tuple[Sabotage, str | None]] = {
    "none": (untouched, None),
    "end": (other_end, r"doesn't end an answer at <\|over\|>"),
    "template": (other_template, "the chat template writes"),
    "token": (lost_token, "texts become other tokens"),
    "heads": (heads_in_place, "a log-probability differs by"),
    "positions": (other_positions, "a log-probability differs by"),
    "beginning": (begun_twice, "texts become other tokens"),
}


@pytest.mark.parametrize("name", list(SABOTAGE))
def test_llama_cpp_tells_what_is_otherwise(name: str, model: Path, tmp_path: Path) -> None:
    """In words, of the first thing that is."""
    sabotage, expected = SABOTAGE[name]
    inputs = read_inputs(whole(model))
    plan = Gguf("f32").plan(inputs.weights(torch.float32), inputs.description)
    sabotage(plan)
    plan.write(tmp_path, 1)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    exported = Exported(plain, inputs.parts.tokenizer, inputs.parts.documents[0][:2], 256)
    failures = check_in_llama_cpp(tmp_path / FILE, exported, "f32", None).failures
    assert bool(failures) is (expected is not None)
    assert expected is None or any(re.search(expected, failure) for failure in failures), failures


def test_a_model_that_overflows_does_not_hold(model: Path, tmp_path: Path) -> None:
    """NaN on both sides is no agreement."""
    shutil.copytree(model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"].fill_(1e38)
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match="log-probabilities are NaN or infinite"):
        export(whole(tmp_path / "model"), tmp_path / "out", ExportOptions("gguf", "f32"))
    assert not (tmp_path / "out").exists()

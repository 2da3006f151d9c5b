"""An adapter as a GGUF file of its own, on its base in the real llama.cpp."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import ExportError
from finetune.exporting.export import export
from finetune.exporting.options import ExportOptions
from finetune.recipe.schema.model import RopeScaling
from finetune.runs.target import Target
from tests.support.adapters import make_adapter
from tests.support.exports import exportable, whole

PLAIN = {"rope_type": "default", "rope_theta": 5000.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "nothing": ("llama", {"lora_alpha": 0}),
    "rslora": ("llama", {"use_rslora": True}),
    "patterns": (
        "llama",
        {"rank_pattern": {"q_proj": 2, "down_proj": 6}, "alpha_pattern": {"k_proj": 3, "layers.1.mlp.up_proj": 16}},
    ),
    "head": ("llama", {"target_modules": ["q_proj", "k_proj", "lm_head"]}),
    "packed": ("phi3", {}),
    "not-turned": ("qwen2", {}),
}  # fmt: skip


def adapter_of(folder: Path, family: str, options: dict[str, Any], **changes: Any) -> Target:
    """A random adapter on a tiny random base with an own head."""
    changes = {"rope_parameters": PLAIN, "tie_word_embeddings": False} | changes
    if family == "phi3":
        changes |= {"sliding_window": None}
    if family == "qwen2":
        changes |= {"use_sliding_window": False, "layer_types": None}
    base = exportable(folder / "base", family, **changes)
    return make_adapter(base, folder / "adapter", **options)


@pytest.mark.parametrize("name", list(KINDS))
def test_llama_cpp_adds_what_was_trained(name: str, tmp_path: Path) -> None:
    """Base in float32 and the adapter by --lora give the log-probabilities and answers of base + adapter."""
    pytest.importorskip("xllamacpp")
    target = adapter_of(tmp_path, *KINDS[name])
    report = export(target, tmp_path / "out", ExportOptions("gguf", "f32", adapter_only=True))
    assert report.files == ("adapter.gguf",)
    assert report.llama_cpp is not None
    assert report.llama_cpp.largest_difference < 1e-4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter.gguf",
        "export.json",
    ]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, {}, "otherwise than by plain LoRA"),
    "whole": ({"modules_to_save": ["lm_head"]}, {}, "otherwise than by plain LoRA"),
    "embedding": ({"target_modules": ["embed_tokens"]}, {}, "changes the embedding|otherwise than by plain LoRA"),
    "tokens": (
        {"new_tokens": ("<|new|>",), "modules_to_save": ["embed_tokens", "lm_head"]}, {}, "brings tokens of its own",
    ),
    "tied": (
        {"target_modules": ["lm_head"]}, {"tie_word_embeddings": True}, "the head of a base that has none of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_lora_can_t_be_in_llama_cpp_is_refused(name: str, tmp_path: Path) -> None:
    """With the way that works."""
    options, changes, expected = REFUSED[name]
    target = adapter_of(tmp_path, "llama", options, **changes)
    with pytest.raises(ExportError, match=expected) as caught:
        export(target, tmp_path / "out", ExportOptions("gguf", adapter_only=True))
    assert "export without --adapter-only" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [ExportOptions("gguf", adapter_only=True), ExportOptions("vllm")])
def test_positions_of_the_adapter_s_own_are_refused(options: ExportOptions, tmp_path: Path) -> None:
    """What loads the adapter alone takes those of the base."""
    target = adapter_of(tmp_path, "llama", {})
    scaled = target.model.model_copy(update={"rope_scaling": RopeScaling(type="linear", factor=2)})
    with pytest.raises(ExportError, match="trained with other positions than its base's"):
        export(replace(target, model=scaled), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_whole_weights_have_no_adapter(tiny_base: Path, tmp_path: Path) -> None:
    """To export alone."""
    with pytest.raises(ExportError, match="has no adapter"):
        export(whole(tiny_base), tmp_path / "out", ExportOptions("gguf", adapter_only=True))


def test_an_adapter_is_not_quantised(tmp_path: Path) -> None:
    """Its matrices are small."""
    target = adapter_of(tmp_path, "llama", {})
    with pytest.raises(ExportError, match="stored in f32, f16 or bf16"):
        export(target, tmp_path / "out", ExportOptions("gguf", "q8_0", adapter_only=True))

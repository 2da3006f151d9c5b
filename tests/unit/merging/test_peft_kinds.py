"""Whatever peft can make of a LLaMA is merged as peft's own unmerged model computes, or refused by name."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import FinetuneError, MergeError
from finetune.merging.merge import merge
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target
from tests.support.adapters import TOKENS, make_adapter, merged_logits
from tests.support.models import save_tiny_llama

KINDS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"target_modules": None, "adapter_layers": 1, "adapter_len": 4},
    "BEFT": {"target_modules": ["q_proj", "v_proj"]},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"num_virtual_tokens": 4},
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2, "num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "TRAINABLE_TOKENS": {"target_modules": None, "token_indices": [5, 9]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "XLORA": {"adapters": {"0": "first"}},
}
"""What a kind asks for beyond names of modules, at this base's sizes."""
REFUSED = {
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LILY", "MULTITASK_PROMPT_TUNING", "P_TUNING", "POLY",
    "PREFIX_TUNING", "PROMPT_TUNING", "SHADOW", "XLORA",
}  # fmt: skip
"""Kinds that add to what a model reads, choose by a text, or that peft itself can't merge or run."""


def shaken(model: PeftModel) -> PeftModel:
    """As if it were trained: every number that trains is another one."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.fixture(scope="module")
def biased_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose attention has biases, which some kinds are made of."""
    folder = tmp_path_factory.mktemp("biased-base")
    save_tiny_llama(folder, attention_bias=True)
    return folder


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_that_peft_has_is_merged_or_refused_by_name(
    kind: str, biased_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kinds are those of the peft that is installed: a new one is tried too."""
    monkeypatch.chdir(tmp_path)
    if kind == "XLORA":
        make_adapter(biased_base, tmp_path / "first")
    model = AutoModelForCausalLM.from_pretrained(biased_base, dtype=torch.float32)
    model.config.use_cache = kind != "XLORA"
    own = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "o_proj"]} | OPTIONS.get(kind, {})
    options = {
        key: value
        for key, value in own.items()
        if key in KINDS[kind].__dataclass_fields__ and value is not None
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = shaken(get_peft_model(model, KINDS[kind](**options)))
        adapted.save_pretrained("adapter", save_embedding_layers=False)
    target = Target(ModelSection(base=str(biased_base)), tmp_path / "adapter", None, "a test's adapter")
    if kind in REFUSED:
        with pytest.raises(FinetuneError, match=rf"(?s)\b{kind}\b"):
            merge(target, tmp_path / "merged", check="tensors")
        assert not (tmp_path / "merged").exists()
        return
    with torch.no_grad():
        expected = adapted(TOKENS).logits
    assert (expected - merged_logits(biased_base)).abs().max() > 1e-3
    merge(target, tmp_path / "merged", check="tensors")
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), expected, rtol=0, atol=2e-5)


SHAPES: dict[str, dict[str, Any]] = {
    "a list": {"target_modules": ["q_proj", "down_proj"]},
    "whole names": {"target_modules": ["model.layers.1.self_attn.q_proj", "layers.0.mlp.up_proj"]},
    "a regular expression": {"target_modules": r".*\.layers\.[01]\.self_attn\.(q|v)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "All-Linear": {"target_modules": "All-Linear"},
    "all-linear but some": {"target_modules": "all-linear", "exclude_modules": ["gate_proj", "model.layers.0.mlp.up_proj"]},
    "all-linear but a pattern": {"target_modules": "all-linear", "exclude_modules": r".*\.0\.self_attn\..*"},
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "everything": {"target_modules": r"(model\.embed_tokens|lm_head|.*_proj)"},
    "one layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
    "layers by pattern": {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    "rank and alpha patterns": {
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "rank_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 2, "k_proj": 6},
        "alpha_pattern": {r"layers\.0\..*": 32, "v_proj": 3},
    },
    "rank patterns with rsLoRA": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "use_rslora": True},
    "DoRA": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "DoRA on an embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "DoRA on the head": {"target_modules": ["lm_head"], "use_dora": True},
    "negative alpha": {"target_modules": ["q_proj"], "lora_alpha": -8},
    "norms saved": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "both saved and tied": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True,
    },
    "a block saved": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "rows of tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]},
    "rows of both": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [5]}},
    "rows and LoRA on the head": {"target_modules": ["q_proj", "lm_head"], "trainable_token_indices": [5, 9]},
    "layers twice": {"target_modules": ["q_proj", "v_proj"], "layer_replication": [[0, 2], [1, 2]]},
    "parameters": {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    "PiSSA": {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa"},
    "PiSSA and rows of both": {
        "target_modules": ["q_proj"], "init_lora_weights": "pissa",
        "trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [5]},
    },
    "OLoRA": {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "olora"},
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
    "LoRA's biases": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "B with a bias": {"target_modules": ["q_proj"], "lora_bias": True},
}  # fmt: skip
"""What the config of a LoRA adapter can name."""
OF_THE_VOCABULARY = [
    shape
    for shape in SHAPES
    if any(word in shape for word in ("embedding", "head", "both", "everything", "rows", "PiSSA"))
]
"""Those whose outcome depends on whether the head is tied, and on whether the vocabulary grew."""
LOST = {"embedding", "head", "DoRA on the head", "rows and LoRA on the head"}
"""Of which peft saves one side of a vocabulary that grew, and not the other: its new rows are in no file."""
BASE_TOKENS = 354
Tied = Callable[[bool], Path]


@pytest.fixture(scope="module")
def base_of(biased_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Tied:
    """The base, with its head tied to the embedding or not."""
    tied = tmp_path_factory.mktemp("tied-base")
    save_tiny_llama(tied, attention_bias=True, tie_word_embeddings=True)
    return lambda is_tied: tied if is_tied else biased_base


@pytest.mark.parametrize(
    ("shape", "tied"),
    [(shape, tied) for shape in SHAPES for tied in (False, True) if not tied or shape in OF_THE_VOCABULARY],
)
def test_each_shape_of_a_lora_adapter_is_merged_as_peft_computes(
    shape: str, tied: bool, base_of: Tied, tmp_path: Path
) -> None:
    """On an untied head, and on a tied one."""
    target, expected = lora(base_of(tied), tmp_path / "adapter", SHAPES[shape])
    merge(target, tmp_path / "merged", check="tensors")
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shape", [*OF_THE_VOCABULARY, "all-linear"])
def test_a_vocabulary_that_grew_is_merged_where_its_rows_are_saved(
    shape: str, tied: bool, base_of: Tied, tmp_path: Path
) -> None:
    """The base was resized for added tokens before it was trained; peft's own save decides what the file
    holds."""
    target, expected = lora(
        base_of(tied), tmp_path / "adapter", SHAPES[shape], new_tokens=("<one>", "<two>", "<three>")
    )
    if shape in LOST and (shape.startswith("rows") or not tied):
        with pytest.raises(MergeError, match=r"different numbers of tokens|with another vocabulary"):
            merge(target, tmp_path / "merged", check="tensors")
        return
    report = merge(target, tmp_path / "merged", check="tensors")
    found = merged_logits(tmp_path / "merged")
    assert found.shape == expected.shape
    # Rows that no file holds are drawn, and said to be; the others are those that were trained.
    known = BASE_TOKENS if any("are in no file" in note for note in report.notes) else expected.shape[-1]
    torch.testing.assert_close(found[..., :known], expected[..., :known], rtol=0, atol=2e-5)


def lora(
    base: Path, folder: Path, shape: dict[str, Any], new_tokens: tuple[str, ...] = ()
) -> tuple[Target, torch.Tensor]:
    """An adapter as plain peft saves it, and the logits of the model in memory."""
    tokenizer = load_tokenizer(base, new_tokens=new_tokens)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if new_tokens:
        model.resize_token_embeddings(len(tokenizer))
    options = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8} | shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = shaken(get_peft_model(model, KINDS["LORA"](**options)))
        adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return Target(ModelSection(base=str(base)), folder, None, "a test's adapter"), adapted(TOKENS).logits

"""Adapters as vLLM loads them: one rank, one scale, nothing but LoRA on linear layers."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune.errors import ExportError, FinetuneError
from finetune.exporting import vllm
from finetune.exporting.vllm import export_for_vllm
from finetune.runs.target import Target
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere, Says

IDS = torch.arange(40).reshape(2, 20)


def logits(base: Path, adapter: Path) -> torch.Tensor:
    """By plain peft, in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, str(adapter)).eval()(IDS).logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 2, "layers.0.self_attn.v_proj": 7}, "alpha_pattern": {"k_proj": 1.5}},
    ],
    ids=["lora", "rslora", "patterns"],
)
def test_the_update_is_the_same(options: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    """To plain peft; and the config has nothing that vLLM doesn't read."""
    target = make_adapter(tiny_base, tmp_path / "adapter", **options)
    report = export_for_vllm(target, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not any(
        config[key] for key in ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "modules_to_save")
    )
    assert config["lora_alpha"] == config["r"] == report.rank
    assert config["bias"] == "none"
    torch.testing.assert_close(
        logits(tiny_base, tmp_path / "out"), logits(tiny_base, tmp_path / "adapter"), atol=1e-5, rtol=1e-5
    )


def test_a_dora_becomes_the_nearest_lora(tiny_base: Path, tmp_path: Path) -> None:
    """Its residual is what plain torch finds of the best matrix of that rank; at full rank it is the same."""
    target = make_adapter(tiny_base, tmp_path / "adapter", use_dora=True, lora_alpha=1)
    report = export_for_vllm(target, tmp_path / "out", rank=8)
    assert report.approximated
    before = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    name = "model.layers.0.self_attn.q_proj"
    weight = before.get_submodule(name).weight.detach().clone()
    after = PeftModel.from_pretrained(before, str(tmp_path / "adapter")).merge_and_unload()
    values = torch.linalg.svdvals(after.get_submodule(name).weight.detach() - weight)
    best = float((values[8:].square().sum() / values.square().sum()).sqrt())
    assert report.residuals[name] == pytest.approx(best, rel=1e-3)
    whole = export_for_vllm(target, tmp_path / "whole", rank=64)
    assert whole.worst < 1e-5 < report.worst


@pytest.mark.parametrize(("rank", "least"), [(3, 8), (64, 64)])
def test_the_smallest_max_lora_rank_is_named(rank: int, least: int, tiny_base: Path, tmp_path: Path) -> None:
    """One of those that vLLM knows."""
    report = export_for_vllm(make_adapter(tiny_base, tmp_path / "adapter", r=rank), tmp_path / "out")
    assert report.max_lora_rank == least
    assert f"--max-lora-rank {least}" in dict(report.lines())["vllm"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight otherwise than by LoRA on a linear layer"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens.weight otherwise than by LoRA"),
        ({"init_lora_weights": "pissa"}, "is no LoRA on its base as it is"),
        ({"trainable_token_indices": [1, 2]}, "embed_tokens.weight otherwise than by LoRA"),
        ({"r": 520, "target_modules": ["q_proj"]}, "the rank is 520, and vLLM takes at most 512"),
    ],
    ids=["modules to save", "embedding", "pissa", "tokens", "rank"],
)
def test_what_vllm_has_no_place_for_is_refused(
    options: dict[str, Any], expected: str, tiny_base: Path, tmp_path: Path
) -> None:
    """With what to do, and nothing written."""
    target = make_adapter(tiny_base, tmp_path / "adapter", **options)
    with pytest.raises(ExportError, match=expected):
        export_for_vllm(target, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_rank_without_dora_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--rank is for DoRA"):
        export_for_vllm(make_adapter(tiny_base, tmp_path / "adapter"), tmp_path / "out", rank=4)


def test_a_wrong_scale_is_found(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read back: a layer whose scale was forgotten leaves nothing."""
    target: Target = make_adapter(tiny_base, tmp_path / "adapter", lora_alpha=3)
    whole = vllm._uniform

    def forgetful(*given: Any) -> Any:
        factors = whole(*given)
        return type(factors)(factors.b * 2, factors.a, factors.left)

    monkeypatch.setattr(vllm, "_uniform", forgetful)
    with pytest.raises(FinetuneError, match="is another in what was written"):
        export_for_vllm(target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_approximation_that_was_written_wrongly_is_found(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DoRA's is as far from the update as the nearest product is, and no farther."""
    target: Target = make_adapter(tiny_base, tmp_path / "adapter", use_dora=True)
    whole = vllm._uniform

    def careless(*given: Any) -> Any:
        factors = whole(*given)
        return type(factors)(factors.b * 1.01, factors.a, factors.left)

    monkeypatch.setattr(vllm, "_uniform", careless)
    with pytest.raises(FinetuneError, match="is another in what was written"):
        export_for_vllm(target, tmp_path / "out")


def test_the_command_is_one_that_a_shell_takes(tiny_base: Path, tmp_path: Path) -> None:
    """Whatever the folders are called."""
    report = export_for_vllm(make_adapter(tiny_base, tmp_path / "adapter"), tmp_path / "my out")
    assert shlex.split(dict(report.lines())["vllm"])[-1] == f"NAME={tmp_path / 'my out'}"


def test_a_base_that_was_quantised_in_training_is_named(tiny_base: Path, tmp_path: Path) -> None:
    """vLLM serves it in 16 bit; of another adapter nothing is said."""
    target = make_adapter(tiny_base, tmp_path / "adapter")
    assert len(export_for_vllm(target, tmp_path / "plain").lines()) == 5
    report = export_for_vllm(replace(target, loaded="nf4", recipe=None), tmp_path / "out")
    assert "trained beside its base in nf4, and vLLM serves the base in 16 bit" in report.lines()[-1][1]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["trained_beside"] == "nf4"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--quantize", "f16"], "--quantize with --format vllm"),
        (["--adapter-only", "--verify", "none"], "--adapter-only and --verify with --format vllm"),
        (["--private"], "--private is for --push"),
    ],
    ids=["type", "two", "private"],
)
def test_options_of_other_formats_are_refused(
    options: list[str], expected: str, says: Says, tiny_base: Path, tmp_path: Path
) -> None:
    make_adapter(tiny_base, tmp_path / "adapter")
    words = ["export", str(tmp_path / "adapter"), "--format", "vllm", "--output", str(tmp_path / "out")]
    code, printed = says(*words, *options)
    assert code == 2
    assert expected in printed


def test_the_command_prints_how_to_serve_it(
    finetune_here: FinetuneHere, tiny_base: Path, tmp_path: Path
) -> None:
    """And its record says the same."""
    make_adapter(tiny_base, tmp_path / "adapter", r=12)
    words = ("export", str(tmp_path / "adapter"), "--format", "vllm", "--output", str(tmp_path / "out"))
    printed = finetune_here(*words).stdout
    assert f"--max-lora-rank 16 --lora-modules NAME={tmp_path / 'out'}" in printed
    assert json.loads((tmp_path / "out" / "export.json").read_text())["max_lora_rank"] == 16

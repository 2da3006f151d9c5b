"""Exports to GGUF: the same from an adapter as from its merge, held to what llama.cpp makes of them, or
refused."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune
from finetune.errors import CheckFailed, ExportError, FinetuneError
from finetune.exporters.gguf import library
from finetune.exporting import export as exporting
from finetune.exporting.llama_cpp.check import kl_of
from finetune.exporting.options import ExportOptions
from finetune.exporting.report import ExportReport
from finetune.merging.merge import merge
from finetune.runs.target import Target, resolve_target
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere
from tests.support.disk import files_up_to
from tests.support.exports import exportable, tensors_of, whole
from tests.support.models import save_tiny_llama

Make = Callable[[Path, Path], Target]


def export(target: Target, output: Path, **options: Any) -> ExportReport:
    """To GGUF, with these options."""
    return exporting.export(target, output, ExportOptions(**{"format": "gguf"} | options))


def values(folder: Path) -> dict[str, Any]:
    """What a file says beside its tensors."""
    reader = gguf.GGUFReader(folder / "model.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A LoRA adapter on the tiny base, with a token of its own."""
    pytest.importorskip("xllamacpp")
    folder = tmp_path_factory.mktemp("adapter")
    return make_adapter(
        tiny_base, folder, new_tokens=("<|new|>",), modules_to_save=["embed_tokens", "lm_head"]
    )


@pytest.mark.parametrize("quantize", ["f32", "bf16", "q8_0"])
def test_an_adapter_is_exported_as_its_merge_is(quantize: str, adapter: Target, tmp_path: Path) -> None:
    """Byte for byte, without the merge on the disk."""
    merge(adapter, tmp_path / "merged", dtype="bfloat16" if quantize == "bf16" else "float32", check="none")
    export(adapter, tmp_path / "straight", format="gguf", quantize=quantize, check="none")
    export(whole(tmp_path / "merged"), tmp_path / "merge", format="gguf", quantize=quantize, check="none")
    assert tensors_of(tmp_path / "straight") == tensors_of(tmp_path / "merge")
    odd = {
        key
        for key, value in values(tmp_path / "straight").items()
        if value != values(tmp_path / "merge")[key]
    }
    assert odd == {"general.name"}


def test_a_float32_export_holds_in_llama_cpp(adapter: Target, tmp_path: Path) -> None:
    """Tokens of 200 texts, prompts, ends, log-probabilities and greedy answers are those of base +
    adapter."""
    report = export(adapter, tmp_path / "out", format="gguf", quantize="f32")
    found = report.llama_cpp
    assert found is not None
    assert (report.failures, found.texts, found.other_tokens, found.prompts) == ([], 200, 0, 2)
    assert found.places > 40
    assert found.largest_difference < 1e-4
    assert (found.same_answers, found.answers) == (4, 4)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["llama_cpp"]["mean_kl"] == found.mean_kl


def test_a_mean_kl_that_was_asked_for_is_kept(adapter: Target, tmp_path: Path) -> None:
    """Beyond --max-kl no output stands under its name, and the files lie beside it."""
    with pytest.raises(CheckFailed, match=r"the mean KL is .* and at most 1e-09 was expected of q4_0"):
        export(adapter, tmp_path / "out", format="gguf", quantize="q4_0", max_kl=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_the_command_prints_what_it_found(
    adapter: Target, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """A line of each check; with --json the record."""
    words = ["export", str(adapter.adapter), "--base", str(adapter.model.base), "--format", "gguf"]
    printed = finetune_here(*words, "--quantize", "q4_k_m", "--output", "a", "--verify", "tensors").stdout
    assert "gguf, q4_k_m: model.gguf" in printed
    assert "rows are no whole blocks" in printed
    found = finetune_here(*words, "--output", "b", "--verify", "none", "--json").json
    assert (found["quantize"], found["files"], found["holds"]) == ("f16", ["model.gguf"], True)


def test_the_python_function_is_the_verb(adapter: Target, tmp_path: Path) -> None:
    """finetune.export, though finetune.exporters and finetune.exporting were imported."""
    report = finetune.export(
        str(adapter.adapter), tmp_path / "out", format="gguf", base=adapter.model.base, verify="none"
    )
    assert report.files == ("model.gguf",)


def test_without_llama_cpp_the_record_says_so(
    adapter: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is compared tensor by tensor, and whoever reads the record learns that llama.cpp did not
    run."""
    monkeypatch.setattr(exporting, "has_library", lambda: False)
    report = export(adapter, tmp_path / "out", format="gguf", quantize="q8_0")
    assert report.tensors is not None
    assert (
        "llama.cpp: did not run: xllamacpp is not installed" in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_model_that_is_larger_than_memory_is_compared_by_tensor(
    adapter: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the record says so."""
    monkeypatch.setattr(exporting, "fits_in_memory", lambda _, beside: False)
    report = export(adapter, tmp_path / "out", format="gguf", quantize="q8_0")
    assert report.not_run == "the model in float32 and the file are larger than the free memory"


def test_a_bit_that_flips_on_the_disk_is_found(
    adapter: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back is not what was computed."""
    compare = exporting.compare_tensors

    def flip(plan: Any, weights: Any, folder: Path, hashes: dict[str, str]) -> Any:
        with (folder / "model.gguf").open("r+b") as file:
            file.seek(-100, 2)
            last = file.read(1)[0]
            file.seek(-100, 2)
            file.write(bytes([last ^ 1]))
        return compare(plan, weights, folder, hashes)

    monkeypatch.setattr(exporting, "compare_tensors", flip)
    with pytest.raises(CheckFailed, match="is not on the disk as it was"):
        export(adapter, tmp_path / "out", format="gguf", quantize="f32", check="tensors")


# --- Refused


OPTIONS = {
    "format": ({"format": "onnx"}, "--format is 'onnx'; expected one of gguf, ollama"),
    "type": ({"quantize": "q4"}, "--quantize is 'q4'; expected one of f32, f16"),
    "check": ({"check": "some"}, "--verify is 'some'"),
    "kl": ({"max_kl": -1.0}, "--max-kl is -1.0"),
    "kl-unmeasured": ({"max_kl": 1.0, "check": "none"}, "--verify none doesn't run it"),
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_bad_option_is_refused(name: str, tiny_base: Path, tmp_path: Path) -> None:
    """Before anything is read or written."""
    options, expected = OPTIONS[name]
    with pytest.raises(ExportError, match=expected.replace("(", r"\(")):
        export(whole(tiny_base), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("llama", {"hidden_act": "gelu"}, "has the activation gelu"),
    "dynamic": (
        "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "positions are scaled by dynamic",
    ),
    "llama3": (
        "qwen2", {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
        "positions are scaled by llama3",
    ),
    "yarn": (
        "llama", {"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16.0,
            "original_max_position_embeddings": 64}},
        r"YaRN has \{'beta_fast': 16.0\}",
    ),
    "biases": ("olmo2", {"attention_bias": True}, "has no place for model.layers.0.self_attn.o_proj.bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_llama_cpp_does_not_compute_is_refused(name: str, tmp_path: Path) -> None:
    """By its name in config.json, or by the tensor; nothing is written."""
    family, changes, expected = CONFIGS[name]
    model = exportable(tmp_path / "model", family, **changes)
    with pytest.raises(ExportError, match=expected):
        export(whole(model), tmp_path / "out", format="gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unknown_architecture_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """With those that there are."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("stablelm", **small, num_key_value_heads=4, vocab_size=400)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "model")
    with pytest.raises(FinetuneError, match="stablelm"):
        export(resolve_target(str(tmp_path / "model")), tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def changed(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> Path:
    """A tiny model in which a tensor was changed."""
    save_tiny_llama(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights[name])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


LAST = "model.layers.1.mlp.down_proj.weight"


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    """With the tensor, the number, and what to choose; bfloat16 holds them."""
    model = changed(tmp_path / "model", LAST, lambda weight: weight[3, 5].fill_(70_000.0))
    with pytest.raises(ExportError, match=f"{LAST} holds a number of 70,000, and float16 ends at 65,504"):
        export(whole(model), tmp_path / "out", format="gguf", quantize="f16")
    assert not (tmp_path / "out").exists()
    export(whole(model), tmp_path / "out", format="gguf", quantize="bf16", check="none")


@pytest.mark.parametrize("quantize", ["f32", "q4_0"])
def test_numbers_that_are_none_are_refused(quantize: str, tmp_path: Path) -> None:
    """NaN goes into no type."""
    model = changed(tmp_path / "model", LAST, lambda weight: weight[3, 5].fill_(float("nan")))
    with pytest.raises(ExportError, match=f"{LAST} contains NaN"):
        export(whole(model), tmp_path / "out", format="gguf", quantize=quantize)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    """What runs GGUF files writes text."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tests.support.models import save_tiny_tokenizer

    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_labels=3, pad_token_id=2,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "model")
    save_tiny_tokenizer(tmp_path / "model")
    with pytest.raises(ExportError, match="has a classification head"):
        export(resolve_target(str(tmp_path / "model")), tmp_path / "out", format="gguf")


def test_an_adapter_that_only_peft_merges_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """With the way that works: merge, then export."""
    target = make_adapter(tiny_base, tmp_path / "adapter", init_lora_weights="olora")
    with pytest.raises(ExportError, match="merge it first"):
        export(target, tmp_path / "out", format="gguf")


def test_what_stands_there_already_is_left_alone(tiny_base: Path, tmp_path: Path) -> None:
    """Nothing is ever written over."""
    (tmp_path / "out").mkdir()
    with pytest.raises(FinetuneError, match="exists already"):
        export(whole(tiny_base), tmp_path / "out", format="gguf")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(FinetuneError, match="/ exists already"):
        export(whole(tiny_base), Path("/"), format="gguf")


def test_a_run_is_exported_and_one_without_result_refused(
    tiny_base: Path, alpaca_file: Path, tmp_path: Path
) -> None:
    """It is asked what its own rows ask; without its adapter there is nothing to export."""
    recipe = {
        "model": {"base": str(tiny_base)},
        "adapter": {"rank": 4},
        "data": {"train": [{"path": str(alpaca_file), "format": "alpaca"}], "max_length_tokens": 128},
        "train": {"max_steps": 2, "precision": "fp32"},
        "tracking": {"tracker": "none"},
        "output": {"folder": str(tmp_path / "runs")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = finetune.train(tmp_path / "recipe.yaml")
    report = finetune.export(run, tmp_path / "out", format="gguf", quantize="f32")
    assert (report.failures, report.model) == ([], f"run {run.folder.name}")
    shutil.rmtree(run.folder / "adapter")
    with pytest.raises(FinetuneError, match="has no result yet"):
        finetune.export(run, tmp_path / "again", format="gguf")
    assert not (tmp_path / "again").exists()


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    save_tiny_llama(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FinetuneError, match=r"model\.safetensors"):
        export(whole(tmp_path / "model"), tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere) -> None:
    """One message, exit code 2, and no folder."""
    with files_up_to(100_000):
        words = ["export", str(tiny_base), "--format", "gguf", "--output", "out"]
        result = finetune_here(*words, code=2)
    assert "error:" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_under_its_name(tiny_base: Path, tmp_path: Path) -> None:
    """After kill -9 in the middle; the next export takes away what it left."""
    child = os.fork()
    if not child:
        exporting.compare_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        export(whole(tiny_base), tmp_path / "out", format="gguf", check="tensors")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    export(whole(tiny_base), tmp_path / "out", format="gguf", check="none")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_k_quant_needs_llama_cpp_s_library(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named with the extra that installs it; nothing is written."""
    monkeypatch.setattr(library, "WHEEL", "gguf_of_nobody")
    monkeypatch.setitem(finetune.extras.EXTRAS, "gguf", {"gguf": "gguf", "gguf_of_nobody": "xllamacpp"})
    library.library.cache_clear()
    model = exportable(tmp_path / "model", "llama", hidden_size=256, intermediate_size=256)
    with pytest.raises(FinetuneError, match=r"needs xllamacpp.*llama-finetune\[gguf\]"):
        export(whole(model), tmp_path / "out", format="gguf", quantize="q4_k_m", check="none")
    assert not (tmp_path / "out").exists()


def test_two_threads_write_the_same_file(tiny_base: Path, tmp_path: Path) -> None:
    """However many compute."""
    from finetune.exporters import Gguf
    from finetune.exporting.inputs import read_inputs

    inputs = read_inputs(whole(tiny_base))
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        Gguf("q5_1").write(inputs.weights(torch.float32), inputs.description, folder, workers=workers)
    one, two = ((tmp_path / name / "model.gguf").read_bytes() for name in ("1", "2"))
    assert one == two
    assert np.frombuffer(one[:4], np.uint8).tobytes() == b"GGUF"


def test_what_llama_cpp_rounds_in_its_sum_is_no_divergence() -> None:
    """Of 50,000 tokens: all log-probabilities shifted alike, as by a sum in float32, are the same
    distribution; other shares of the tokens that aren't listed, and other shares among the listed, are not."""
    mine = torch.randn(50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(4)
    mine = mine.log_softmax(-1).sort(descending=True).values
    listed = mine[:512]
    assert kl_of(listed, listed + 3e-4, 50_000) < 1e-12
    fewer = mine.exp()
    fewer[512:] /= 2
    fewer = (fewer / fewer.sum()).log()
    assert kl_of(listed, fewer[:512], 50_000) == pytest.approx(float((mine.exp() * (mine - fewer)).sum()))
    other = (mine[:512] * 1.1).log_softmax(-1) + listed.exp().sum().log()
    between = float((listed.exp() * (listed - other)).sum())
    assert kl_of(listed, other, 50_000) == pytest.approx(between)

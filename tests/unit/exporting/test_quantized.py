"""Folders of quantised weights: what the formats' own libraries make of the same weights, bit for bit; loaded by
transformers, and held to what they predict."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from finetune.errors import CheckFailed, ExportError, FinetuneError
from finetune.exporters.compressed.types import QUANTIZATIONS, NumberType
from finetune.exporters.nf4 import Nf4Weights
from finetune.exporters.quantized import folder
from finetune.exporting import export as exporting
from finetune.exporting import quantized
from finetune.exporting.inputs import read_inputs
from finetune.exporting.options import ExportOptions
from finetune.exporting.report import ExportReport
from finetune.merging.merge import merge
from finetune.merging.rounding.request import RoundingRequest
from finetune.models import safetensors
from finetune.runs.target import Target
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere
from tests.support.exports import exportable, whole
from tests.support.families import OPTIONS as FAMILIES
from tests.support.models import save_tiny_llama

GROUPED = {"int8": {"group_size": 32}, "int4": {"group_size": 16}, "fp8": {}}
ODD = {"hidden_size": 40, "intermediate_size": 72}
"""Rows, and whole weights (20 x 40), that aren't whole blocks of 64."""


@pytest.fixture(autouse=True)
def _in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight in several blocks of rows, as large ones are."""
    pytest.importorskip("compressed_tensors")
    monkeypatch.setattr(safetensors, "BLOCK_NUMBERS", 1000)


def export(target: Target, output: Path, **options: Any) -> ExportReport:
    """To a quantised folder, with these options."""
    found = exporting.export(target, output, ExportOptions(**{"format": "compressed"} | options))
    assert isinstance(found, ExportReport)
    return found


def in_bfloat16(model: Path, **options: Any) -> Path:
    """A tiny LLaMA, stored in 16 bit as most are."""
    save_tiny_llama(model, **options)
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(model)
    return model


def layers_of(model: Path) -> dict[str, torch.Tensor]:
    """The weights of the linear layers but the head, in float32."""
    weights = load_file(model / "model.safetensors")
    return {
        name.removesuffix(".weight"): weight.float()
        for name, weight in weights.items()
        if name.endswith("proj.weight")
    }


@pytest.mark.parametrize("quantize", list(GROUPED))
def test_the_library_s_own_compressor_makes_the_same(quantize: str, tmp_path: Path) -> None:
    """Of the same weights and scales, bit for bit; and its own rule gives the same scales."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    export(
        whole(in_bfloat16(tmp_path / "model")),
        tmp_path / "out",
        quantize=quantize,
        check="none",
        **GROUPED[quantize],
    )
    written, kind = load_file(tmp_path / "out" / "model.safetensors"), QUANTIZATIONS[quantize]
    group = GROUPED[quantize].get("group_size")
    scheme, compressor = kind.scheme(group), BaseCompressor.get_value_from_registry(kind.format)
    for layer, weight in layers_of(tmp_path / "model").items():
        groups = weight.unflatten(1, (-1, group or weight.shape[1]))
        scales, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        theirs = compressor.compress({"weight": weight, "weight_scale": scales.bfloat16().float()}, scheme)
        for name, tensor in theirs.items():
            mine = written[f"{layer}.{name}"]
            assert torch.equal(mine.to(tensor.dtype), tensor), (layer, name)
        assert {name.split(".")[-1] for name in written if name.startswith(f"{layer}.")} == set(theirs)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_nf4_is_what_transformers_makes_while_it_loads(options: dict[str, Any], tmp_path: Path) -> None:
    """Each tensor of the model in memory, bit for bit, of an adapter's merge in bfloat16."""
    target = make_adapter(in_bfloat16(tmp_path / "model", **ODD | options), tmp_path / "adapter")
    merge(target, tmp_path / "merged", check="none", rounding="nearest")
    export(target, tmp_path / "out", format="nf4", check="none")
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", quantization_config=how).state_dict()
    mine = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert mine.keys() == theirs.keys()
    states = {name for name in theirs if "quant_state" in name}
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs.keys() - states)
    assert len(states) == 14
    for name in states:
        assert json.loads(bytes(mine[name].tolist())) == json.loads(bytes(theirs[name].tolist()))


@pytest.mark.parametrize(
    "options", [{"quantize": "int4", "group_size": 16}, {"format": "nf4"}], ids=["int4", "nf4"]
)
def test_an_adapter_is_exported_as_its_merge_is(
    options: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    """Byte for byte, without the merge on the disk."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    merge(adapter, tmp_path / "merged", dtype="float32", check="none")
    export(adapter, tmp_path / "straight", check="none", **options)
    export(whole(tmp_path / "merged"), tmp_path / "merge", check="none", **options)
    straight, merged = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "merge")
    )
    assert straight == merged


ASKED = {name: {"quantize": name} | options for name, options in GROUPED.items()} | {"nf4": {"format": "nf4"}}


@pytest.mark.parametrize("name", list(ASKED))
def test_a_folder_is_asked_in_transformers(name: str, tiny_base: Path, tmp_path: Path) -> None:
    """The mean KL is the one that plain torch finds between base and folder, each loaded by itself."""
    report = export(whole(tiny_base), tmp_path / "out", **ASKED[name])
    assert report.failures == []
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (tiny_base, tmp_path / "out")
    ]
    found = []
    for document in read_inputs(whole(tiny_base)).parts.documents[0]:
        with torch.no_grad():
            before, after = (
                model(torch.tensor([document.token_ids])).logits[0].log_softmax(-1) for model in models
            )
        found.append(torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1))
    stored = json.loads((tmp_path / "out" / "export.json").read_text())["predictions"]
    assert stored["mean_kl"] == pytest.approx(float(torch.cat(found).mean()), rel=2e-2)
    assert stored["loss"] != stored["unquantized_loss"]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_family_is_loaded(family: str, tmp_path: Path) -> None:
    """Every linear layer of it but the head is packed, no tensor is missing or left over, and what is read
    predicts nearly the same."""
    model = exportable(tmp_path / "model", family)
    report = export(whole(model), tmp_path / "out", quantize="int8", group_size=32)
    assert report.failures == []
    assert report.predictions is not None
    assert report.predictions.mean_kl < 1e-2
    kept = {
        name for name in load_file(tmp_path / "out" / "model.safetensors") if name.endswith("proj.weight")
    }
    assert kept == set()


@pytest.mark.parametrize(
    "options", [{"quantize": "int4", "group_size": 16}, {"format": "nf4"}], ids=["int4", "nf4"]
)
def test_several_files_and_short_names_are_loaded(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a base whose names leave `model.` out, with tokens of an adapter's own: all of it is there."""
    save_tiny_llama(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    short = {name.removeprefix("model."): weight for name, weight in load_file(file).items()}
    save_file(short, file, {"format": "pt"})
    own = {"new_tokens": ("<|new|>",), "modules_to_save": ["embed_tokens", "lm_head"]}
    target = make_adapter(tmp_path / "model", tmp_path / "adapter", **own)
    monkeypatch.setattr(folder, "LARGEST_FILE", 100_000)
    report = export(target, tmp_path / "out", **options)
    assert report.failures == []
    assert sum(name.endswith(".safetensors") for name in report.files) > 1
    assert report.predictions is not None
    assert report.predictions.mean_kl < 1e-2


# --- What is wrong is found


def test_a_mean_kl_that_was_asked_for_is_kept(tiny_base: Path, tmp_path: Path) -> None:
    """Beyond --max-kl no output stands under its name, and the files lie beside it."""
    with pytest.raises(CheckFailed, match=r"the mean KL is .* nats a token; --max-kl allows 1e-09"):
        export(whole(tiny_base), tmp_path / "out", quantize="int4", group_size=16, max_kl=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_numbers_in_another_order_are_found(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library reads other numbers than rounding gives."""
    packed = NumberType.packed
    monkeypatch.setattr(NumberType, "packed", lambda self, numbers: packed(self, numbers.flip(1)))
    with pytest.raises(CheckFailed, match=r"self_attn.q_proj is read as other numbers"):
        export(whole(tiny_base), tmp_path / "out", quantize="int4", group_size=16, check="tensors")


def test_another_offset_of_nf4_is_found(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes reads other numbers than it makes of the weights itself."""
    state = Nf4Weights._state
    monkeypatch.setattr(Nf4Weights, "_state", lambda self, source, offset: state(self, source, offset * 1.01))
    with pytest.raises(CheckFailed, match=r"self_attn.q_proj is read as other numbers"):
        export(whole(tiny_base), tmp_path / "out", format="nf4", check="tensors")


def test_a_scale_that_changes_on_the_disk_is_found(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back is not what was computed."""
    read_back = quantized._read_back

    def change(form: Any, plan: Any, inputs: Any, path: Path, hashes: dict[str, str]) -> Any:
        file = path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return read_back(form, plan, inputs, path, hashes)

    monkeypatch.setattr(quantized, "_read_back", change)
    with pytest.raises(CheckFailed, match="is not on the disk as it was computed"):
        export(whole(tiny_base), tmp_path / "out", quantize="fp8", check="tensors")


def test_a_model_that_is_larger_than_memory_is_compared_by_tensor(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the record says so; a bound that then can't be measured is refused."""
    monkeypatch.setattr(quantized, "fits_in_memory", lambda _: False)
    report = export(whole(tiny_base), tmp_path / "out", quantize="fp8")
    assert report.tensors is not None
    assert (
        "transformers",
        "did not run: the model in float32 is larger than the free memory",
    ) in report.lines()
    with pytest.raises(ExportError, match="--max-kl can't be measured"):
        export(whole(tiny_base), tmp_path / "again", quantize="fp8", max_kl=1.0)


# --- Refused


REFUSED = {
    "no-type": ({}, "--quantize is missing; expected one of fp8, int8, int4"),
    "type-of-gguf": ({"quantize": "q8_0"}, "--quantize is 'q8_0'; expected one of fp8"),
    "group": (
        {"quantize": "int4"},
        r"--group-size 128 doesn't divide the rows of model.layers.0.self_attn.q_proj, which have 64 numbers "
        "each: choose one of 8, 16, 32, 64, which suits all layers",
    ),
    "group-of-none": ({"quantize": "int8", "group_size": 0}, "--group-size is 0"),
    "group-of-fp8": ({"quantize": "fp8", "group_size": 32}, "--group-size with --quantize fp8"),
    "group-of-gguf": ({"format": "gguf", "group_size": 32}, "--group-size is for --format compressed"),
    "type-of-nf4": ({"format": "nf4", "quantize": "int4"}, "--quantize with --format nf4"),
    "group-of-nf4": ({"format": "nf4", "group_size": 64}, "--group-size with --format nf4"),
    "adapter-only": ({"format": "nf4", "adapter_only": True}, "--adapter-only is for --format gguf"),
    "rank": ({"format": "nf4", "rank": 8}, "--rank is for --format vllm"),
    "kl-unmeasured": ({"quantize": "fp8", "max_kl": 1.0, "check": "tensors"}, "--verify tensors doesn't run"),
    "rounding": (
        {"format": "nf4", "rounding": RoundingRequest("stochastic")},
        "--rounding stochastic with --format nf4: its linear layers are rounded to the nearest",
    ),
    "mlx": ({"format": "mlx"}, "finetune merge writes that folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_bad_option_is_refused(name: str, tiny_base: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    options, expected = REFUSED[name]
    with pytest.raises(FinetuneError, match=expected):
        export(whole(tiny_base), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_no_base_for_another(tiny_base: Path, tmp_path: Path) -> None:
    """Weights are rounded once."""
    export(whole(tiny_base), tmp_path / "out", quantize="fp8", check="none")
    with pytest.raises(FinetuneError, match=r"is stored quantised \(compressed-tensors\)"):
        export(whole(tmp_path / "out"), tmp_path / "again", quantize="int8", group_size=32)


def test_the_command_prints_what_it_found(
    tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """Loss, KL and scales; and no bar of a library."""
    words = ["export", str(tiny_base), "--format", "compressed", "--quantize", "int4", "--group-size", "32"]
    result = finetune_here(*words, "--output", "out")
    assert "compressed, int4: " in result.stdout
    assert "predictions   loss " in result.stdout
    assert "one scale for each 32 numbers of a row (W4A16)" in result.stdout
    assert result.stderr == ""

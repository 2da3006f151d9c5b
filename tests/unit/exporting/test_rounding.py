"""Exports in 16 bits, rounded as a merge is."""

from pathlib import Path

import pytest

from finetune.errors import MergeError
from finetune.exporting.export import export as exporting
from finetune.exporting.options import ExportOptions
from finetune.exporting.report import ExportReport
from finetune.merging.merge import merge
from finetune.merging.rounding.request import RoundingRequest
from finetune.runs.target import Target
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere
from tests.support.exports import tensors_of, whole

NORM = "model.layers.0.input_layernorm"


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A LoRA adapter that brings a norm of its own."""
    pytest.importorskip("gguf")
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapter"), modules_to_save=[NORM])


def export(target: Target, output: Path, quantize: str, asked: RoundingRequest | None = None) -> ExportReport:
    """Without a check."""
    options = ExportOptions("gguf", quantize, check="none", rounding=asked or RoundingRequest())
    report = exporting(target, output, options)
    assert isinstance(report, ExportReport)
    return report


def test_drawn_bits_are_those_of_a_merge_by_the_same_seed(adapter: Target, tmp_path: Path) -> None:
    """Matrix by matrix, though rows of q and k change places; a norm is not rounded at all."""
    merge(adapter, tmp_path / "merged", dtype="bfloat16", check="none", rounding="stochastic", seed=3)
    export(whole(tmp_path / "merged"), tmp_path / "merge", "bf16")
    report = export(adapter, tmp_path / "straight", "bf16", RoundingRequest("stochastic", 3))
    mine, its = tensors_of(tmp_path / "straight"), tensors_of(tmp_path / "merge")
    assert {name for name in mine if mine[name] != its[name]} == {"blk.0.attn_norm.weight"}
    assert report.rounding is not None
    assert (report.rounding.written, report.rounding.seed) == ("stochastic", 3)


def test_another_seed_draws_other_bits(adapter: Target, tmp_path: Path) -> None:
    """In the matrices that the adapter changes."""
    for seed in (3, 4):
        export(adapter, tmp_path / str(seed), "bf16", RoundingRequest("stochastic", seed))
    assert tensors_of(tmp_path / "3") != tensors_of(tmp_path / "4")


def test_float16_is_rounded_to_the_nearest_unless_asked(adapter: Target, tmp_path: Path) -> None:
    """Its steps are an eighth of bfloat16's."""
    unasked = export(adapter, tmp_path / "unasked", "f16")
    export(adapter, tmp_path / "nearest", "f16", RoundingRequest("nearest"))
    export(adapter, tmp_path / "drawn", "f16", RoundingRequest("stochastic"))
    nearest = tensors_of(tmp_path / "nearest")
    assert tensors_of(tmp_path / "unasked") == nearest
    assert unasked.rounding is not None
    assert unasked.rounding.written == "nearest"
    different = {name for name, held in tensors_of(tmp_path / "drawn").items() if held != nearest[name]}
    assert different
    assert "blk.0.attn_norm.weight" not in different


def test_auto_is_compared_as_a_whole(adapter: Target, tmp_path: Path, finetune_here: FinetuneHere) -> None:
    """As a merge's is, and the line says what was written."""
    pytest.importorskip("xllamacpp")
    words = ["export", str(adapter.adapter), "--base", str(adapter.model.base), "--format", "gguf"]
    done = finetune_here(*words, "--quantize", "bf16", "--output", str(tmp_path / "out"))
    assert any(line.startswith("rounding") and "KL nearest" in line for line in done.lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"quantize": "q8_0", "rounding": RoundingRequest("stochastic")},
            "--rounding stochastic with --quantize q8_0: no weight is rounded to 16 bits",
        ),
        ({"quantize": "bf16", "rounding": RoundingRequest("dice")}, "--rounding is 'dice'; expected one of"),
        (
            {"quantize": "bf16", "adapter_only": True, "rounding": RoundingRequest(seed=1)},
            "--seed with --adapter-only",
        ),
        ({"format": "vllm", "rounding": RoundingRequest("calibrated")}, "with --format vllm"),
    ],
)
def test_a_rounding_that_counts_for_nothing_is_refused(
    options: dict[str, object], message: str, adapter: Target, tmp_path: Path
) -> None:
    """Before anything is read."""
    with pytest.raises(MergeError) as caught:
        exporting(adapter, tmp_path / "out", ExportOptions(**{"format": "gguf"} | options))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_without_an_adapter_has_nothing_to_choose(tiny_base: Path, tmp_path: Path) -> None:
    """Its weights are written as they are."""
    with pytest.raises(MergeError, match="--rounding stochastic with a model that has no adapter"):
        export(whole(tiny_base), tmp_path / "out", "bf16", RoundingRequest("stochastic"))

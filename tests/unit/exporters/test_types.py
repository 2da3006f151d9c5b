"""The type of each tensor, and its bytes, are those that llama.cpp's own quantiser writes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune.exporters.gguf.types import Layout, choose_type
from finetune.exporting.inputs import read_inputs
from tests.support.exports import (
    GOLDEN_MODELS,
    golden_entry,
    golden_kinds,
    save_golden_model,
    whole,
    write_gguf,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "llama_quantize.json").read_text())
"""By benchmarks/bench_llama_quantize.py --golden."""


@pytest.mark.parametrize("name", list(GOLDEN_MODELS))
def test_types_and_bytes_are_llama_cpp_s(name: str, tmp_path: Path) -> None:
    """Of what its program made of our file in float32, in every type."""
    pytest.importorskip("xllamacpp")
    inputs = read_inputs(whole(save_golden_model(tmp_path / "model", name)))
    assert list(GOLDEN[name]) == golden_kinds(name)
    for kind, expected in GOLDEN[name].items():
        assert golden_entry(write_gguf(inputs, tmp_path / kind, kind)) == expected, kind


def test_llama_quantize_writes_the_same(tmp_path: Path) -> None:
    """The system's own, where there is one."""
    program = shutil.which("llama-quantize")
    if program is None:
        pytest.skip("there is no llama-quantize")
    inputs = read_inputs(whole(save_golden_model(tmp_path / "model", "llama-tied")))
    exact = write_gguf(inputs, tmp_path / "exact")
    subprocess.run([program, str(exact), str(tmp_path / "theirs"), "Q4_K_M", "1"], check=True)
    assert golden_entry(write_gguf(inputs, tmp_path / "q4_k_m", "q4_k_m")) == golden_entry(
        tmp_path / "theirs"
    )


def test_values_that_eight_heads_share_are_finer_in_a_70b() -> None:
    """llama.cpp's rule for 80 layers."""
    kinds = [
        choose_type("blk.40.attn_v.weight", (1024, 8192), kind, Layout(80, 8, True, is_70b=True)).kind
        for kind in ("q2_k", "q3_k_m", "q4_k_m", "q6_k")
    ]
    assert kinds == ["Q5_K", "Q5_K", "Q5_K", "Q6_K"]

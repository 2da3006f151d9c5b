"""The benchmark of GPUs runs, part by part, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import bench_gpu, bench_long, numbers
from benchmarks.gpu.models import write_base
from finetune.errors import ModelError


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *options: str) -> dict[str, Any]:
    """What it measured of the tiny shape on the CPU."""
    words = ["bench_gpu", "--shape", "tiny", "--device", "cpu", "--json", str(output), *options]
    monkeypatch.setattr(sys, "argv", words)
    bench_gpu.main()
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_every_part_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a rate for each way of training."""
    found = run(monkeypatch, tmp_path / "out.json")
    rates = {name: values.get("tokens/s", values.get("pairs/s")) for name, values in found.items()}
    timed = {"lora, dropout 0", "lora, dropout 0.1", "packs", "qlora", "fp8", "dpo", "peft", "row 128"} | {
        "row 256"
    }
    assert {name for name, rate in rates.items() if rate} == timed
    assert found["numbers"] == dict.fromkeys(numbers.BOUNDS, 0.0)
    assert {"trl", "liger", "unsloth"} < set(found)


def test_operations_are_counted_in_both_ways(tmp_path: Path) -> None:
    """14,900 tokens/s of an 8B on an H100, rows of 4,096, are 48.4 % of its 989 TFLOP/s by 4 operations a
    weight, and 50 % by those that are made."""
    bench = bench_gpu.Bench(torch.device("cpu"), "8b", tmp_path, 1.0)
    by_weights, made = (one * 14_900 / 8192 / 989e12 for one in bench.operations([4096, 4096]))
    assert (round(by_weights, 3), round(made, 2)) == (0.484, 0.50)


def test_a_part_that_ends_leaves_the_others_and_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was measured before it is in the file, and what comes after is measured."""

    def ends(bench: bench_gpu.Bench) -> None:
        assert "gemm" in json.loads((tmp_path / "out.json").read_text())
        raise ModelError("no more of the host's memory")

    monkeypatch.setitem(bench_gpu.PARTS, "lengths", ends)
    found = run(monkeypatch, tmp_path / "out.json", "--parts", "gemm", "lengths", "peft")
    assert found["lengths"] == {"ends": "no more of the host's memory"}
    assert found["peft"]["tokens/s"] > 0


def test_long_rows_are_measured_one_a_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each call goes on where the file ends; once memory has, none does."""
    file, base = tmp_path / "long.json", tmp_path / "base"
    words = ["bench_long", "--shape", "tiny", "--device", "cpu", "--json", str(file), "--base", str(base)]
    monkeypatch.setattr(sys, "argv", words)
    for count in (1, 2):
        bench_long.main()
        found = json.loads(file.read_text())
        assert set(found) == {"machine", *map(str, bench_long.LENGTHS["tiny"][:count])}
        assert all(values["tokens/s"] > 0 for name, values in found.items() if name != "machine")
    assert bench_long.upcoming(found | {"320": {"ends": "out of memory"}}, "tiny") is None


def test_a_wrong_number_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is timed."""
    written: list[Path] = []

    def other_weights(*given: Any) -> Any:
        model = ours(*given)
        if written:
            model.get_input_embeddings().weight.data.mul_(1.01)
        written.append(given[0])
        return model

    ours = numbers.ours
    monkeypatch.setattr(numbers, "ours", other_weights)
    with pytest.raises(SystemExit, match="beyond the bound; nothing is timed"):
        run(monkeypatch, tmp_path / "out.json")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And measures nothing."""
    monkeypatch.setattr(sys, "argv", ["bench_gpu"])
    monkeypatch.setattr(bench_gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        bench_gpu.main()


def test_the_base_is_read_by_transformers(tmp_path: Path) -> None:
    """Every weight of it, in bf16."""
    from transformers import AutoModelForCausalLM

    folder = write_base(tmp_path / "base", "tiny", torch.device("cpu"))
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]


def test_kernels_are_beside_plain_arithmetic() -> None:
    """What a GPU's are asked in bf16, of Triton's interpreter in fp32."""
    pytest.importorskip("triton")
    program = (
        "import torch; from benchmarks.gpu.numbers import kernels_apart as apart; "
        "print(apart(torch.device('cpu'), torch.float32))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.split()[-1]) < 1e-6

"""The benchmark of GPUs runs, part by part, where there is none."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import bench_gpu, numbers
from benchmarks.gpu.models import write_base


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
    import torch
    from transformers import AutoModelForCausalLM

    folder = write_base(tmp_path / "base", "tiny", torch.device("cpu"))
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]

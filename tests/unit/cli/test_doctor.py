"""finetune doctor as it prints."""

import json
from pathlib import Path

import pytest
import torch

from finetune import machine
from finetune.cli import doctor as doctoring
from finetune.cli.doctor import doctor
from finetune.models import device


def test_the_report_says_what_will_be_used_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    """Device and precision come first, each with its reason; packages, memory and disks follow."""
    doctor(as_json=True)
    findings = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in findings[:2]] == ["device", "precision"]
    assert all(finding["remark"] for finding in findings[:2])
    names = {finding["name"] for finding in findings}
    assert {
        "cores",
        "memory",
        "python",
        "bitsandbytes",
        "deepspeed",
        "g++",
        "runs",
        "hub token",
        "wandb key",
    } <= names


def test_keys_are_never_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub token and a wandb key are reported as set; their values appear nowhere."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789secret")
    doctor()
    printed = capsys.readouterr().out
    assert "secret" not in printed
    doctor(as_json=True)
    found = {finding["name"]: finding["value"] for finding in json.loads(capsys.readouterr().out)}
    assert (found["hub token"], found["wandb key"]) == ("set", "set")


def test_plain_output_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Away from a terminal every line has its value in the same column, and no escape sequence."""
    doctoring.print_plain(
        [machine.Fact("a", "name", "value", "remark"), machine.Fact("longer", "n", "v", "remark")]
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.index("remark") == second.index("remark")
    assert "\x1b" not in first + second


def test_a_table_is_printed_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The rich table holds the same findings; markup in a value is not interpreted."""
    doctoring.print_table([machine.Fact("topic", "name", "[bold]value[/bold]", "MISSING: x")])
    assert "[bold]value[/bold]" in capsys.readouterr().out


def test_what_is_absent_is_named_with_its_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent extra says what is refused without it."""
    monkeypatch.setattr(machine.util, "find_spec", lambda name: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name, path=None: None)
    found = {finding.name: finding for finding in machine.extras()}
    assert all(finding.value == "absent" for finding in found.values())
    assert "qlora" in found["bitsandbytes"].remark
    assert "deepspeed" in found["ninja"].remark


def test_a_gpu_is_described_with_what_computes_on_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Driver, CUDA, cuDNN, NCCL, links between GPUs, and the compiler of Triton's kernels."""
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n")
    monkeypatch.setattr(machine, "DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92000)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 29, 7))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: other == 1)
    found = {fact.name: fact for fact in machine.cuda()}
    assert (found["driver"].value, found["driver"].remark) == ("580.95.05", "torch is for CUDA 13.0")
    assert (found["cuDNN"].value, found["NCCL"].value) == ("92000", "2.29.7")
    assert found["links"].remark.startswith("not between 0-2, 1-2")
    assert "C compiler" in found


def test_kernels_are_named() -> None:
    """What computes attention, norms and losses is among what will be used."""
    found = {fact.name: fact.value for fact in machine.use()}
    assert found["attention"] == "per_document"
    assert found["fused kernels"] == "none"


def test_a_gpu_that_torch_can_not_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report goes on where training is refused."""
    monkeypatch.setattr(device, "unusable_gpu", lambda: "The NVIDIA driver is too old. Update it.")
    assert [fact.value for fact in machine.use()] == ["none"]
    assert next(machine.devices()).remark == "The NVIDIA driver is too old. Update it."

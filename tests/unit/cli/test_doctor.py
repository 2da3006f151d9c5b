"""finetune doctor as it prints."""

import json

import pytest

from finetune import machine
from finetune.cli import doctor as doctoring
from finetune.cli.doctor import doctor


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
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    found = {finding.name: finding for finding in machine.extras()}
    assert all(finding.value == "absent" for finding in found.values())
    assert "qlora" in found["bitsandbytes"].remark
    assert "deepspeed" in found["ninja"].remark

"""Launches that can't work end in one message, exit 2, and leave nothing behind."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launches import Train


@pytest.mark.parametrize(
    ("options", "sections", "expected"),
    [
        (("--processes", "2"), {}, "need --launch NAME"),
        (("--launch", "zero4"), {}, "--launch: got 'zero4', expected one of cpu, ddp"),
        (("--launch", "cpu", "--processes", "2"), {}, "--launch cpu is one process"),
        (
            ("--launch", "ddp", "--processes", "3"),
            {},
            "global_batch_size 4 does not divide into micro_batch_size 1 x 3 processes",
        ),
        (
            ("--launch", "zero3", "--processes", "2"),
            {"adapter": {"use_dora": True}},
            "dora with --launch zero3: DoRA needs the norm",
        ),
        (("--launch", "ddp", "--processes", "2"), {"train": {"precision": "fp16"}}, "Take bf16"),
        (
            ("--launch", "zero3", "--processes", "2"),
            {"model": {"new_tokens": ["<x>"]}},
            "Take fsdp2, zero2 or ddp",
        ),
        (("--launch", "ddp", "--processes", "2", "--nodes", "2"), {}, "--nodes needs --rendezvous HOST:PORT"),
        (
            ("--launch", "ddp", "--processes", "3", "--nodes", "2", "--rendezvous", "x:1"),
            {},
            "is not divisible by --nodes 2",
        ),
        (
            (
                "--launch",
                "ddp",
                "--processes",
                "2",
                "--nodes",
                "2",
                "--node-rank",
                "2",
                "--rendezvous",
                "x:1",
            ),
            {},
            "expected 0 to 1",
        ),
        (("--launch", "ddp", "--processes", "2", "--rendezvous", "localhost:1"), {}, "give --nodes too"),
        (
            ("--launch", "ddp", "--processes", "2", "--nodes", "2", "--rendezvous", "localhost"),
            {},
            "expected HOST:PORT",
        ),
    ],
)
def test_one_message(
    train: Train, tmp_path: Path, options: tuple[str, ...], sections: dict[str, dict[str, Any]], expected: str
) -> None:
    """The reason is said before any process starts."""
    started = time.monotonic()
    done = train(*options, code=2, **sections)
    assert expected in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 30
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_port_in_use(train: Train) -> None:
    """Machine 0's port is looked at before anything waits on it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        options = ("--launch", "ddp", "--processes", "2", "--nodes", "2", "--rendezvous", f"127.0.0.1:{port}")
        done = train(*options, code=2)
    assert f"--rendezvous 127.0.0.1:{port} can't be used on this machine" in done.stderr


def test_the_first_failure_is_said_once(train: Train, tmp_path: Path) -> None:
    """What every process would say (here: documents longer than the base) is said once, with its exit code;
    no run is left."""
    data = {"max_length_tokens": 1000, "pack_length_tokens": 1000}
    done = train("--launch", "ddp", "--processes", "2", code=2, data=data)
    assert "data.max_length_tokens is 1000, but this base has 256 positions" in done.stderr
    assert done.stderr.count("error:") == 1
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.long
def test_a_file_of_ones_own(train: Train, tmp_path: Path) -> None:
    """An accelerate file by path is used as the shipped ones are."""
    own = tmp_path / "mine.yaml"
    own.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n"
    )
    assert train("--launch", str(own), train={"max_steps": 1, "global_batch_size": 2}).run is not None


def test_a_file_of_ones_own_that_cannot_train(train: Train, tmp_path: Path) -> None:
    """One for FSDP1, or whose adapter would move to another device, is refused with the reason."""
    own = tmp_path / "mine.yaml"
    own.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n")
    assert "fsdp_version is 1; set it to 2" in train("--launch", str(own), code=2).stderr
    own.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_offload_params: true}\n")
    assert "set it to false, or take zero3_offload" in train("--launch", str(own), code=2).stderr

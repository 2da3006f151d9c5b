"""Shipped configurations, the matrix, and which failure is told."""

import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from finetune.engines import registry
from finetune.engines.base import METHODS, method_of
from finetune.engines.ddp import DDP
from finetune.engines.deepspeed import remove_stale_builds
from finetune.engines.launch.addresses import loopback, parse_address
from finetune.engines.launch.configs import find_config, shipped
from finetune.engines.launch.processes import first_failure
from finetune.engines.launch.worker import ERROR_FILE, tell_launcher
from finetune.engines.single import SINGLE
from finetune.errors import LaunchError
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.adapter import AdapterSection


def test_every_engine_of_the_matrix_has_a_file() -> None:
    """Each shipped file names the engine that its name promises, and each engine has one."""
    engines = {name: find_config(name).engine for name in shipped()}
    assert set(engines.values()) == set(registry.ENGINES)
    assert engines.pop("cpu") == SINGLE
    assert all(name.startswith(engine.name) for name, engine in engines.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("distributed_type: DEEPSPEED\n", "zero_stage is None, expected 1, 2 or 3"),
        ("distributed_type: TPU\n", "distributed_type is TPU"),
        ("- a list\n", "is no accelerate configuration"),
        ("a: [\n", "is no YAML file"),
    ],
)
def test_files_that_can_not_be_used(tmp_path: Path, text: str, expected: str) -> None:
    """A file without what the launcher needs to know is refused with the key and what it holds."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(LaunchError, match=expected):
        find_config(str(path))


def test_the_matrix_gives_reasons() -> None:
    """Each combination either works or has a reason and a way that works."""
    for method in METHODS:
        assert DDP.refusal(method, "bf16") is None
        for engine in registry.of_several():
            why = engine.refusal(method, "fp32")
            assert why is None or (why.reason and why.nearest)
    assert method_of(AdapterSection(use_dora=True)) == "dora"
    assert method_of(AdapterSection(method="qlora", quantization="int8")) == "qlora_int8"


@pytest.mark.parametrize(
    ("adapter", "refusing"),
    [
        ({"method": "qlora", "quantization": "int8"}, {"zero2_offload", "zero3", "zero3_offload", "fsdp2"}),
        ({"method": "qlora", "init": "loftq"}, {"zero2_offload", "zero3", "zero3_offload", "fsdp2"}),
        ({"init": "pissa"}, {"zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2"}),
        ({"layers": "last 2"}, set()),
    ],
    ids=["int8", "loftq", "pissa", "layers"],
)
def test_engines_refuse_adapters_that_they_can_not_train(
    adapter: dict[str, object], refusing: set[str]
) -> None:
    """By name, with a way that works; the others take them."""
    data = {"train": [{"generated": "orders"}]}
    recipe = Recipe.model_validate({"model": {"base": "owner/name"}, "adapter": adapter, "data": data})
    method = method_of(recipe.adapter)
    found = {
        engine.name
        for engine in registry.of_several()
        if engine.refusal(method, "bf16") is not None or engine.problem(recipe) is not None
    }
    assert found == refusing


@dataclass
class Ended:
    """What torch's agent knows of a process that failed."""

    exitcode: int
    timestamp: int
    message: str = ""
    error_file: str = ""
    error_file_data: dict[str, object] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({0: Ended(1, 10), 1: Ended(-9, 12)}, 1),  # killed: the other one only lost it
        ({0: Ended(1, 10), 1: Ended(2, 11)}, 1),  # refused its input: the other one only lost it
        ({0: Ended(-15, 10), 1: Ended(2, 11)}, 1),  # stopped by the agent
        ({0: Ended(2, 12), 1: Ended(2, 11)}, 1),  # the earlier one
        (
            {0: Ended(-9, 40), 1: Ended(2, 10)},
            1,
        ),  # refused its input: the agent killed the other one, which hung
    ],
)
def test_the_first_failure_is_the_reason(failures: dict[int, Ended], expected: int) -> None:
    """Of several processes that failed, the one is told whose end was the others' reason."""
    assert first_failure(failures).rank == expected


def test_one_that_lost_another_is_not_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exits 2 as one does that refuses its input; what it wrote for the launcher tells them apart."""
    written = tmp_path / "error.json"
    monkeypatch.setenv(ERROR_FILE, str(written))
    killed = ProcessFailure(local_rank=1, pid=2, exitcode=-9, error_file="")
    tell_launcher("process 0 lost the others", lost=True)
    assert (
        first_failure(
            {0: ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(written)), 1: killed}
        ).rank
        == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["error.json"]  # in place at once, and nothing else
    tell_launcher("the run is being trained")
    assert (
        first_failure(
            {0: ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(written)), 1: killed}
        ).rank
        == 0
    )


def test_the_lock_of_a_killed_build_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock stays while something is being written beside it, goes when nothing was for long; others' locks
    stay."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    names = ("deepspeed_dead", "cpu_adam", "deepspeed_busy", "other")
    for name in names:
        (tmp_path / "py311_cpu" / name).mkdir(parents=True)
        for file in ("lock", "a.o"):
            path = tmp_path / "py311_cpu" / name / file
            path.write_text("")
            old = time.time() - 3600
            os.utime(path, (old, old))
    (tmp_path / "py311_cpu" / "deepspeed_busy" / "a.o").touch()
    remove_stale_builds()
    assert [name for name in names if (tmp_path / "py311_cpu" / name / "lock").exists()] == [
        "deepspeed_busy",
        "other",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:29500", "10.0.0.1:29500"),
        ("localhost:1", "localhost:1"),
        ("[::1]:29500", "[::1]:29500"),
        ("10.0.0.1", None),
        ("10.0.0.1:0", None),
        ("10.0.0.1:99999", None),
        (":29500", None),
        ("::1:29500", None),
        ("0.0.0.0:29500", None),
        ("[::]:29500", None),
        ("no-such-host.invalid:29500", None),
    ],
)
def test_addresses_of_machine_0(text: str, expected: str | None) -> None:
    """One address and a port; what names every interface, or none, is refused in one message."""
    if expected is not None:
        assert str(parse_address(text)) == expected
        return
    with pytest.raises(LaunchError, match="--rendezvous: "):
        parse_address(text)


def test_a_name_that_only_this_machine_knows_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's /etc/hosts gives a machine's own name an address of loopback: others would wait for it in
    vain."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 29500))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(LaunchError, match=r"node0 is 127\.0\.1\.1 here, which no other machine reaches"):
        parse_address("node0:29500")


def test_a_launch_listens_at_the_named_address_alone() -> None:
    """Machine 0's socket is bound to the address; loopback's interface is found by its address."""
    address = parse_address("127.0.0.1:29873")
    with address.listener() as listener:
        assert listener.getsockname() == ("127.0.0.1", 29873)
        with pytest.raises(
            LaunchError, match=r"--rendezvous 127\.0\.0\.1:29873 can't be used on this machine"
        ):
            address.listener()
    assert address.interface() == loopback()

"""Machines that share a run folder, and those that don't; the other machine is played in words of the
store."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from finetune.engines.launch import shared_folder
from finetune.engines.launch.shared_folder import check_shared
from finetune.errors import LaunchError

pytestmark = pytest.mark.torch


def until(holds: Callable[[], Any], what: str) -> Any:
    """Waits a moment."""
    pause = threading.Event()
    for _ in range(100):
        if found := holds():
            return found
        pause.wait(0.02)
    raise LaunchError(what)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "SECONDS", 0.2)


def test_machines_that_share_it(tmp_path: Path) -> None:
    """Three of them find each other's marks, and take them away."""
    store, failed = HashStore(), list[BaseException]()

    def machine(rank: int) -> None:
        try:
            check_shared(store, tmp_path if rank == 0 else None, rank, 3, until)
        except LaunchError as error:
            failed.append(error)

    machines = [threading.Thread(target=machine, args=(rank,)) for rank in range(3)]
    for thread in machines:
        thread.start()
    for thread in machines:
        thread.join()
    assert failed == []
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_does_not_see_the_first_ones(tmp_path: Path) -> None:
    """Both are refused with which machine, which folder, and what to set."""
    store, there = HashStore(), tmp_path / "of machine 0"
    store.set("folder", f"token first-host {there}")
    store.set("verdict", "as machine 0 says it")
    with pytest.raises(LaunchError, match="as machine 0 says it"):
        check_shared(store, None, 1, 2, until)
    said = store.get("seen1").decode()
    assert said.startswith("! machine 1 (")
    assert f"doesn't see the run folder of machine 0 (first-host), {there}: machines have to share it" in said


def test_a_machine_whose_files_do_not_come(tmp_path: Path) -> None:
    """One that says it wrote, and whose mark isn't there, writes elsewhere."""
    store = HashStore()
    store.set("seen1", "machine 1 (other)")
    store.add("heard", 1)
    with pytest.raises(LaunchError, match=r"what machine 1 \(other\) writes to .* doesn't come to machine 0"):
        check_shared(store, tmp_path, 0, 2, until)
    assert list(tmp_path.iterdir()) == []

"""jemalloc is preloaded where it is, once, and never against the user's will."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.engines.launch import allocator

RESTARTING = "from finetune.engines.launch.allocator import restart_with_jemalloc; restart_with_jemalloc()\n"
LOADED = "print('jemalloc' in open('/proc/self/maps').read(), __import__('sys').argv[1:])"
TAKING_TURNS = """
import re, sys, threading
from finetune.engines.launch.allocator import one_arena
take = one_arena() if sys.argv[1] == "one" else lambda: None
pinned, end = [], threading.Event()

def work(done):
    take()
    for _ in range(2):
        held = [bytearray(1 << 20) for _ in range(24)]
        pinned.append(bytearray(4096))
        del held
    done.set()
    end.wait()

for _ in range(8):
    done = threading.Event()
    threading.Thread(target=work, args=(done,)).start()
    done.wait()
end.set()
print(int(re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1]) // 1024)
"""
"""Eight threads take 24 MiB and let them go, one after the other; the most that was resident."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jemalloc is preloaded on Linux only")


def run(tmp_path: Path, **environment: str) -> str:
    """What a program that restarts itself prints."""
    script = tmp_path / "program.py"
    script.write_text(RESTARTING + LOADED)
    known = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    root = str(Path(__file__).resolve().parents[4])
    command = [sys.executable, str(script), "--steps", "two words"]
    done = subprocess.run(
        command,
        env=known | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(allocator.find_jemalloc() is None, reason="libjemalloc.so.2 is not installed")
def test_a_process_becomes_itself_with_jemalloc(tmp_path: Path) -> None:
    """The restarted process has jemalloc mapped, and the arguments that it was called with."""
    assert run(tmp_path) == "True ['--steps', 'two words']"
    assert allocator.allocator()[0] == "jemalloc" or "LD_PRELOAD" in os.environ


def test_an_empty_ld_preload_keeps_the_systems(tmp_path: Path) -> None:
    """A user who sets LD_PRELOAD, be it to nothing, is left alone."""
    assert run(tmp_path, LD_PRELOAD="") == "False ['--steps', 'two words']"


def test_a_library_that_does_not_load_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no library of this machine is reported, and training goes on with the system's
    allocator."""
    foreign = tmp_path / "libjemalloc.so.2"
    foreign.write_bytes(b"not a library")
    monkeypatch.setattr(allocator, "find_jemalloc", lambda: foreign)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert allocator.allocator() == ("the system's", f"{foreign} does not load here")
    monkeypatch.setattr(os, "execve", lambda *call: pytest.fail("restarted with a library that doesn't load"))
    allocator.restart_with_jemalloc()


def test_threads_that_take_turns_take_memory_from_one_place(tmp_path: Path) -> None:
    """With the system's allocator; by itself each of eight keeps 24 MiB for itself. Under jemalloc, too,
    where that is installed."""
    script, library = tmp_path / "turns.py", allocator.find_jemalloc()
    script.write_text(TAKING_TURNS)
    root = str(Path(__file__).resolve().parents[4])
    for preloaded in ["", *([str(library)] if library is not None else [])]:
        most = {}
        for how in ("one", "own"):
            done = subprocess.run(
                [sys.executable, str(script), how],
                env=os.environ | {"PYTHONPATH": root, "LD_PRELOAD": preloaded},
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            most[how] = int(done.stdout)
        assert most["own"] - most["one"] > 100, preloaded

"""jemalloc in place of the C library's allocator: a training step on the CPU then keeps its memory, and holds
less of it.

glibc gives large blocks back to the system and takes them again page by page, step after step. An allocator
can only be preloaded, so the process is replaced by itself once, before anything heavy is imported. On a GPU
torch allocates by itself, and is told how.
"""

import ctypes
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from finetune.environment import has_nvidia_gpu

LIBRARY = "libjemalloc.so.2"
M_ARENA_MAX = -8
"""glibc's number of the option, in malloc.h."""


def find_jemalloc() -> Path | None:
    """The library, in the environment's own folders or the system's; None where it isn't installed."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (
        Path(sys.prefix, "lib"),
        Path("/usr/local/lib"),
        Path("/usr/lib", multiarch),
        Path("/usr/lib64"),
        Path("/usr/lib"),
    )
    return next((folder / LIBRARY for folder in folders if (folder / LIBRARY).is_file()), None)


def allocator() -> tuple[str, str]:
    """What allocates in training (a name and the reason), for messages."""
    preloaded = os.environ.get("LD_PRELOAD")
    if preloaded is not None:
        return (Path(preloaded).name or "the system's"), "LD_PRELOAD is set"
    if sys.platform != "linux":
        return "the system's", "jemalloc is preloaded on Linux only"
    path = find_jemalloc()
    if path is None:
        return (
            "the system's",
            f"{LIBRARY} is not installed (Debian: libjemalloc2); it takes less memory on the CPU",
        )
    if not loads(path):
        return "the system's", f"{path} does not load here"
    return "jemalloc", f"{path}; LD_PRELOAD= (empty) keeps the system's"


def loads(path: Path) -> bool:
    """Whether a process can start with the library: it may be another machine's, or built for other pages."""
    tried = subprocess.run(
        [sys.executable, "-P", "-S", "-c", ""],
        env=os.environ | {"LD_PRELOAD": str(path)},
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0 and not tried.stderr


GPU_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""torch's variables for how it takes a GPU's memory."""


def set_up_gpu() -> None:
    """Let torch enlarge what it has taken of an NVIDIA GPU: packs are of many lengths, and blocks that can't
    grow leave gaps between them. And let cuBLAS sum in one order, which it is told once, at its first product
    (train.deterministic); its workspace is then what it has on a Hopper GPU anyway, 32 MiB.

    What the user sets goes first; before torch is imported."""
    if not has_nvidia_gpu():
        return
    if not any(name in os.environ for name in GPU_SETTINGS):
        os.environ[GPU_SETTINGS[0]] = "expandable_segments:True"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def restart_with_jemalloc() -> None:
    """Replace this process by itself with jemalloc preloaded; nothing happens where there is none, or
    LD_PRELOAD is set."""
    if sys.platform != "linux" or "LD_PRELOAD" in os.environ:
        return
    path = find_jemalloc()
    if path is not None and loads(path):
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, os.environ | {"LD_PRELOAD": str(path)})  # noqa: S606 - this very program


def one_arena() -> Callable[[], object]:
    """What lets a thread that calls it take the host's memory from where this thread does. An allocator gives
    each thread a place of its own, which keeps what was let go of there: of threads that take turns, so many
    times a step's memory. glibc's threads that are there already keep theirs."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallctl"):  # jemalloc
        arena, size = ctypes.c_uint(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_uint))
        name, read = b"thread.arena", ctypes.byref(size)
        library.mallctl(name, ctypes.byref(arena), read, None, ctypes.c_size_t(0))
        return lambda: library.mallctl(name, None, None, ctypes.byref(arena), size)
    if hasattr(library, "mallopt"):  # glibc
        library.mallopt(M_ARENA_MAX, 1)
    return lambda: None

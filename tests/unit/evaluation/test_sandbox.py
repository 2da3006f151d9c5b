"""Generated programs: what passes, what fails and why, and what the kernel keeps from them. Real processes
throughout."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.sandbox.runner import confine, run_program, run_programs, why_no_sandbox
from finetune.scoring.measured import Verdict
from finetune.scoring.metrics.programs import pass_at_k
from tests.unit.evaluation.programs import PASSED, SECONDS, each, reason_of

pytestmark = pytest.mark.skipif(why_no_sandbox() is not None, reason=f"no sandbox here: {why_no_sandbox()}")
REPOSITORY = Path(__file__).resolve().parents[3]
OVERFULL = "left more than 64 MB or 1000 files in its folder"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs get their folders; after every test none of their processes runs and none of their files
    is there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("finetune-*")) == []


def processes_of(folder: Path) -> list[int]:
    """Processes that were started for a program in the folder, and their offspring: the folder is in their
    environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(folder).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Until the condition holds, at most 10 s."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sandbox_is_here() -> None:
    """On the machines that run the tests nothing is missing, so that the tests below mean something."""
    assert why_no_sandbox() is None


# --- What passes, and what fails


GOOD = {
    "tests": "def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5",
    "comment": "# nothing to do",
    "caught exit": "import sys\ntry:\n    sys.exit(0)\nexcept SystemExit:\n    pass",
    "beyond ASCII": "s = '\u00e9\u4e16\U0001f600'\nprint(s)\nassert len(s) == 3",
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor as Pool\nassert list(Pool(4).map(abs, [-1, 2])) "
        "== [1, 2]"
    ),
    "main module": """
import dataclasses, pickle, sys
@dataclasses.dataclass
class Point:
    x: "int" = 1
assert pickle.loads(pickle.dumps(Point(2))) == Point(2)
assert __name__ == "__main__" and sys.modules["__main__"].Point is Point
""",
    "event loop": """
import asyncio
async def f():
    return await asyncio.to_thread(abs, -3)
assert asyncio.run(f()) == 3
""",
}


@each(GOOD)
def test_a_program_that_reaches_its_end_passes(program: str) -> None:
    """Also with threads, an event loop, pickled classes of the program's own, and text beyond ASCII."""
    assert run_program(program, seconds=SECONDS) == PASSED


def test_the_standard_library_works() -> None:
    """Modules in Python and in shared objects import; a module that isn't there gives the usual error."""
    names = (
        "abc array bisect bz2 calendar cmath collections contextlib copy csv datetime decimal doctest enum "
        "fractions functools hashlib heapq inspect io itertools json logging lzma math mimetypes operator "
        "pathlib queue random re shutil sqlite3 ssl statistics string struct tempfile textwrap threading "
        "time typing unicodedata unittest uuid zlib zoneinfo"
    )
    used = (
        "assert mimetypes.guess_type('a.png')[0] == 'image/png' and uuid.uuid4() != uuid.uuid4() and "
        "random.random() < 1"
    )
    assert run_program(f"import {', '.join(names.split())}\n{used}", seconds=SECONDS) == PASSED
    assert (
        reason_of("import no_such_module") == "ModuleNotFoundError: No module named 'no_such_module' (line 1)"
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("x = 1\nassert x == 2", "assertion failed: assert x == 2 (line 2)"),
        ("assert False, 'f(3): got 4'", "assertion failed: f(3): got 4 (line 1)"),
        ("def f():\n    return 1 / 0\n\nf()", "ZeroDivisionError: division by zero (line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("raise KeyboardInterrupt('a')", "KeyboardInterrupt: a (line 1)"),
        ("input()", "EOFError: EOF when reading a line (line 1)"),
        ("raise Exception('two\\nlines \\ud800')", "Exception: two lines ? (line 1)"),
    ],
)
def test_a_failure_has_its_reason_and_line(program: str, reason: str) -> None:
    """What was raised, in one line, and where in the program."""
    assert run_program(program, seconds=SECONDS) == Verdict(False, reason)


@pytest.mark.parametrize(
    "text",
    ["x = 1\0", "\0", "x = '\ud800'", "\x1b\x00\xff" * 99, "(" * 10_000, "-" * 100_000 + "1"],
    ids=["NUL at the end", "NUL", "surrogate", "bytes", "parentheses", "nesting"],
)
def test_text_that_is_no_program_fails(text: str) -> None:
    """NUL bytes, lone surrogates, and nesting beyond the compiler are failures like others."""
    assert "exited early" not in reason_of(text)


@pytest.mark.parametrize(
    "end",
    [
        "import sys; sys.exit(0)",
        "import sys; sys.exit()",
        "import os; os._exit(0)",
        "raise SystemExit",
        "raise SystemExit(0)",
    ],
)
def test_leaving_early_is_no_pass(end: str) -> None:
    """Before its tests ran, a program hasn't passed, whatever its exit code says."""
    assert reason_of(f"{end}\nassert True") == "exited early"
    assert reason_of(f"def f():\n    {end}\n\nassert f() == 1") == "exited early"


def test_a_verdict_is_reproducible() -> None:
    """Sets of strings keep one order, from one run to the next."""
    verdicts = run_programs(["assert False, repr({'a', 'b', 'c', 'd', 'e'})"] * 5, seconds=SECONDS)
    assert len(set(verdicts)) == 1


def test_programs_run_side_by_side_in_their_order() -> None:
    """Four that sleep for a second take about that, not four; verdicts come in the programs' order."""
    started = time.monotonic()
    verdicts = run_programs(
        ["import time; time.sleep(1)"] * 4 + ["assert False", "x = 1"], seconds=SECONDS, workers=6
    )
    assert time.monotonic() - started < 3
    assert [verdict.passed for verdict in verdicts] == [True] * 4 + [False, True]
    assert run_programs([]) == []


FORGERIES = {
    "noise in every descriptor": """
import os
for descriptor in range(64):
    try:
        os.write(descriptor, b"passed" + b"0" * 26)
    except OSError:
        pass
os._exit(0)
""",
    "a full report": """
import os
for descriptor in range(3, 64):
    try:
        while True:
            os.write(descriptor, b"x" * 4096)
    except OSError:
        pass
os._exit(0)
""",
    "all bytes in the frames below": """
import os, sys
frame, texts = sys._getframe(), []
while frame:
    for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
        texts += [text for text in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(text, bytes)]
    frame = frame.f_back
for descriptor in range(3, 64):
    for text in texts:
        try:
            os.write(descriptor, text)
        except OSError:
            pass
os._exit(0)
""",
    "patched functions": """
import builtins, os
os.write = os._exit = builtins.exec = builtins.isinstance = lambda *arguments: 32
raise ValueError
""",
    "emptied globals": "import sys\nsys._getframe(1).f_globals.clear()\nraise ValueError",
    "an error that raises": "class E(BaseException):\n    def __str__(self): raise self\n\nraise E",
    "an error with endless text": "class E(Exception):\n    def __str__(self): return 'x' * 10**8\n\nraise E",
    "after the end": "import atexit, os, sys\natexit.register(os._exit, 0)\nsys.excepthook = print\n1 / 0",
}


@each(FORGERIES)
def test_a_pass_is_not_forged(program: str) -> None:
    """Nothing that a program writes, patches or reaches by name stands for its end."""
    reason_of(program)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "def jump(frame, event, argument): frame.f_lineno = 5\nimport sys\nsys.settrace(jump)\nassert "
            "False\nx = 1",
            "sys.settrace",
        ),
        (
            "import gc\nlists = [held for held in gc.get_objects() if isinstance(held, list)]",
            "gc.get_objects",
        ),
        ("import ctypes", "_ctypes"),
        (
            "import sys\nassert not [name for name in sys.modules if 'ctypes' in name]\nimport _ctypes",
            "_ctypes",
        ),
        ("import sys\nsys.setprofile(print)", "sys.setprofile"),
        ("import _testcapi\n_testcapi.run_in_subinterp('pass')", "_testcapi"),
    ],
)
def test_the_interpreter_is_not_searched(program: str, reason: str) -> None:
    """A program may not jump over its tests with a trace function, walk all objects, or use foreign
    functions."""
    assert reason_of(program).startswith(f"tried to use {reason} ")


NATIVE = """
import _imp, importlib.machinery, os, shutil, sys
library = next(folder for folder in sys.path if folder.endswith("lib-dynload"))
file = os.path.join(library, next(name for name in os.listdir(library) if name.startswith({module!r} + ".")))
{change}
loader = importlib.machinery.ExtensionFileLoader({name!r}, file)
_imp.create_dynamic(importlib.machinery.ModuleSpec({name!r}, loader, origin=file))
"""


@pytest.mark.parametrize(
    ("module", "name", "change"),
    [
        ("_ctypes", "_ctypes", ""),
        ("_ctypes", "math", ""),
        ("_ctypes", "a._ctypes", ""),
        ("_ctypes", "math", "file = library + '/../lib-dynload' + file[len(library):]"),
        ("_ctypes", "_ctypes", "os.symlink(file, 'math.so'); file = os.path.abspath('math.so')"),
        ("math", "math", "shutil.copy(file, 'math.so'); file = os.path.abspath('math.so')"),
        ("_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters", "math", ""),
    ],
)
@pytest.mark.skipif(
    not any(folder.endswith("lib-dynload") for folder in sys.path), reason="this Python has all built in"
)
def test_native_code_is_the_librarys_alone(module: str, name: str, change: str) -> None:
    """No foreign functions and no second interpreter, by whatever name, nor a shared object that the program
    wrote."""
    reason = reason_of(NATIVE.format(module=module, name=name, change=change))
    assert "tried to load native code" in reason or "tried to use" in reason


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with 3.12")
def test_lines_are_not_skipped_by_monitoring() -> None:
    """A callback for each line could jump over the tests."""
    program = """
import sys
sys.monitoring.use_tool_id(1, "x")
sys.monitoring.register_callback(1, sys.monitoring.events.LINE, lambda code, line: None)
"""
    assert reason_of(program).startswith("tried to use sys.monitoring.register_callback ")


def test_a_hook_of_its_own_is_not_called() -> None:
    """Python takes no second audit hook where the first refuses it, and doesn't say so."""
    program = (
        "import sys\nseen = []\nsys.addaudithook(lambda *event: seen.append(event))\nopen('a', 'w')\nassert "
        "not seen"
    )
    assert run_program(program, seconds=SECONDS) == PASSED


# --- Time and memory


ENDLESS = {
    "loop": "while True: pass",
    "loop that catches all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "signals ignored": """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: time.sleep(1)
""",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "descriptors closed": "import os, time\nos.closerange(0, 64)\ntime.sleep(1000)",
    "threads": """
import threading
for _ in range(20):
    threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()
while True: pass
""",
    "print": "while True: print('x' * 10**6)",
    "print to stderr": "import sys\nwhile True: print('x' * 10**6, file=sys.stderr)",
    "arithmetic": "x = 10 ** 10 ** 9",
    "regular expression": "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
    "text of an error": "class E(Exception):\n    def __str__(self):\n        while True: pass\n\nraise E",
}


@each(ENDLESS)
def test_an_endless_program_ends_at_its_limit(program: str) -> None:
    """Whatever it catches, ignores, closes or prints, and in C code as well."""
    started = time.monotonic()
    assert reason_of(program, seconds=0.5) == "took longer than 0.5 s"
    assert time.monotonic() - started < 5


GREEDY = {
    "at once": "x = bytearray(10 * 2**30)",
    "bit by bit": "x = []\nwhile True: x.append(bytearray(2**20))",
    "small objects": "x = []\nwhile True: x.append([x])",
    "doubling": "x = 'a'\nwhile True: x += x",
    "mapped": "import mmap\nx = [mmap.mmap(-1, 2**28) for _ in range(40)]",
}


@each(GREEDY)
def test_memory_is_bounded(program: str) -> None:
    """Ten gigabytes are refused, and the reason is that."""
    reason = reason_of(program, memory_bytes=128 * 2**20)
    assert reason == "used more memory than 128 MB" or "Cannot allocate memory" in reason


DEEP = {
    "plain": "def f(): return f()\nf()",
    "no limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
    "in C": "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "in attributes": """
import sys
sys.setrecursionlimit(10**9)
class A:
    def __getattr__(self, name): return getattr(self, name)
A().x
""",
}


@each(DEEP)
def test_deep_recursion_fails(program: str) -> None:
    """With an error, for want of memory or time, or by a crash of the interpreter."""
    reason_of(program, seconds=1.5)


def test_threads_are_bounded() -> None:
    """Threads without end are a failure; forty are not."""
    text = """
import threading, time
threading.stack_size(32768)
for _ in range({}):
    threading.Thread(target=time.sleep, args=({},)).start()
"""
    assert reason_of(text.format(10**6, 1000)) == "started more than 64 threads"
    assert run_program(text.format(40, 0), seconds=SECONDS) == PASSED


# --- Processes and the network


PROCESSES = {
    "fork": "import os\nos.fork()",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "system": "import os\nos.system('sleep 60')",
    "popen": "import os\nos.popen('sleep 60').read()",
    "exec": "import os\nos.execv('/bin/sleep', ['sleep', '60'])",
    "posix_spawn": "import os\nos.posix_spawn('/bin/sleep', ['sleep', '60'], {})",
    "spawn": "import os\nos.spawnv(os.P_NOWAIT, '/bin/sleep', ['sleep', '60'])",
    "pty": "import pty\npty.spawn('/bin/sh')",
    "subprocess": "import subprocess\nsubprocess.Popen(['sleep', '60'])",
    "multiprocessing": "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
    "spawned": "import multiprocessing\nmultiprocessing.get_context('spawn').Process(target=print).start()",
}


@each(PROCESSES)
def test_a_program_starts_no_process(program: str) -> None:
    """By no door of the standard library."""
    reason = reason_of(program)
    # posixsubprocess, which multiprocessing's spawn uses, is the kernel's to refuse.
    assert "tried to start a process" in reason or "refused by the sandbox" in reason


def test_a_refusal_is_an_ordinary_error() -> None:
    """A program can catch it and go on to its tests."""
    assert (
        run_program("import os\ntry:\n    os.fork()\nexcept PermissionError:\n    pass", seconds=SECONDS)
        == PASSED
    )


NETWORK = {
    "connect": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "IPv6": "import socket\nsocket.socket(socket.AF_INET6)",
    "Unix": "import socket\nsocket.socket(socket.AF_UNIX)",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "names": "import socket\nsocket.getaddrinfo('example.org', 80)",
    "urllib": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
    "datagrams by a pair": "import socket\nsocket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', '/run/systemd/notify')",
}


@each(NETWORK)
def test_the_network_is_out_of_reach(program: str) -> None:
    """No socket of any family, no name looked up, no message sent."""
    reason = reason_of(program)
    assert "tried to reach the network" in reason or "refused by the sandbox: [Errno 1]" in reason


def test_the_program_inherits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable that Python doesn't need, no argument, no input, and no descriptor but the standard three
    and the report."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    program = """
import os, sys
assert set(os.environ) <= {"PYTHONHASHSEED", "MALLOC_ARENA_MAX", "TMPDIR", "LC_CTYPE"}, os.environ
assert sys.argv == ["<program>"]
assert sys.stdin.read() == ""
found = []
for descriptor in range(1000):
    try:
        os.fstat(descriptor)
        found.append(descriptor)
    except OSError:
        pass
assert len(found) == 4, found
"""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        assert run_program(program, seconds=SECONDS) == PASSED
    finally:
        os.close(reading)
        os.close(writing)


# --- Files


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "/proc/1/environ",
        "/proc/self/mem",
        "/proc/self/root/etc/passwd",
        str(REPOSITORY / "README.md"),
    ],
)
def test_files_outside_the_folder_are_not_read(path: str) -> None:
    """Not the system's, not another process's, not this repository's, by no name; the reason says which."""
    refused = f"tried to open a file outside its folder: {path} (line 2)"
    assert reason_of(f"\nopen({path!r}).read()") == refused
    assert reason_of(f"import os\nos.open({path!r}, os.O_RDONLY)") == refused
    assert "outside its folder: link (line 2)" in reason_of(
        f"import os; os.symlink({path!r}, 'link')\nopen('link')"
    )
    assert run_program(f"import os; os.link({path!r}, 'link')\nopen('link')", seconds=SECONDS) != PASSED


def test_what_lies_beside_the_folder_is_not_read(temporary: Path) -> None:
    """Nor listed, though the user may."""
    secret = temporary / "token"
    secret.write_text("hf_secret")
    assert (
        reason_of(f"print(open({str(secret)!r}).read())")
        == f"tried to open a file outside its folder: {secret} (line 1)"
    )
    for folder in ("/", "..", str(Path.home()), str(temporary)):
        assert (
            reason_of(f"import os\nos.listdir({folder!r})")
            == f"tried to open a file outside its folder: {folder} (line 2)"
        )


@pytest.mark.parametrize(
    "change",
    [
        "open(path, 'w')", "open(path, 'a').write('x')", "os.open(path, os.O_RDONLY | os.O_TRUNC)", "os.truncate(path, 0)",
        "os.remove(path)", "os.rename(path, 'mine')", "os.rename(path, path + '2')", "os.link(path, 'mine'); open('mine', 'w')",
        "os.symlink(path, 'mine'); open('mine', "
        "'w')", "os.chmod(path, 0)", "os.utime(path, (5, 5))", "os.chown(path, 1, 1)",
        "os.setxattr(path, 'user.a', "
        "b'1')", "open('mine', 'w'); os.rename('mine', path)", "open(path + '3', 'w')",
        "os.mkdir(path + '4')", "os.symlink('a', path + '5')", "os.mkfifo(path + '6')", "shutil.rmtree(os.path.dirname(path))",
    ],
)  # fmt: skip
def test_files_outside_the_folder_are_not_changed(temporary: Path, change: str) -> None:
    """Neither text, name, mode, owner nor times of a file that the user may write to; nothing new appears
    beside it."""
    kept = temporary / "kept"
    kept.write_text("as it was")
    kept.chmod(0o644)
    os.utime(kept, (1, 1))
    before = kept.stat()
    run_program(f"import os, shutil\npath = {str(kept)!r}\n{change}", seconds=SECONDS)
    after = kept.stat()
    assert kept.read_text() == "as it was"
    for field in ("st_mode", "st_uid", "st_mtime", "st_nlink", "st_ino"):
        assert getattr(after, field) == getattr(before, field)
    assert os.listxattr(kept) == []
    assert list(temporary.iterdir()) == [kept]


def test_the_folder_is_the_programs_own() -> None:
    """It may write, read, copy, move and remove there, and take temporary files; the next program finds
    nothing."""
    program = """
import os, shutil, tempfile
assert os.listdir(".") == []
os.makedirs("a/b")
open("a/b/c", "w").write("text")
shutil.copy2("a/b/c", "d")
os.rename("d", "a/d")
assert open("a/d").read() == "text"
with tempfile.TemporaryDirectory() as folder:
    open(os.path.join(folder, "x"), "w").write("y")
print("x", file=open(os.devnull, "w"))
shutil.rmtree("a")
open("left", "w").write("x")
"""
    assert [run_program(program, seconds=SECONDS) for _ in range(2)] == [PASSED, PASSED]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("file = open('a', 'wb')\nwhile True: file.write(bytes(2**20))", "File too large"),
        ("open('a', 'wb').truncate(10 * 2**30)", "File too large"),
        (
            "import os\nos.posix_fallocate(os.open('a', os.O_CREAT | os.O_RDWR), 0, 10 * 2**30)",
            "File too large",
        ),
        ("files = [open('a', 'wb') for _ in range(10**4)]", "Too many open files"),
        (
            "import os\nwhile True:\n    os.truncate(os.open('a', os.O_CREAT | os.O_RDWR), 0)",
            "Too many open files",
        ),
        ("import os\nos.mkdir('a', 0o300)", "was refused by the sandbox"),
        (
            "import mmap\nfile = open('a', 'w+b')\nfile.write(bytes(9999))\nmmap.mmap(file.fileno(), 0)",
            "tried to map a file",
        ),
        ("import itertools\nfor n in itertools.count(): open(str(n), 'wb').write(bytes(2**20))", OVERFULL),
        ("import itertools\nfor n in itertools.count(): open(str(n), 'wb').close()", OVERFULL),
        ("import os\nwhile True:\n    os.mkdir('a' * 200)\n    os.chdir('a' * 200)", OVERFULL),
    ],
)
def test_files_are_bounded(program: str, reason: str) -> None:
    """Each by the kernel; all together, and their number and depth, by the parent."""
    assert reason in reason_of(program)


ROOM = {
    "hidden": "os.umask(0o477)\nos.mkdir('a')\nfor n in range(150): fill(os.open(f'a/{n}', os.O_CREAT | os.O_RDWR))",
    "allocated": "for n in range(25): os.posix_fallocate(os.open(str(n), os.O_CREAT | os.O_RDWR), 0, 16 << 20)",
    "unlinked": "for n in range(25): fill(os.open('a', os.O_CREAT | os.O_RDWR)); os.unlink('a')",
    "never linked": "for n in range(25): fill(os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600))",
    "written over": "for n in range(25): fill(os.open('a', os.O_CREAT | os.O_RDWR)); open('b', 'w'); os.replace('b', 'a')",
}


@each(ROOM)
def test_room_that_no_name_shows_is_bounded(program: str, temporary: Path) -> None:
    """Of folders that can't be listed and files without a name too; and it is free again."""
    before = shutil.disk_usage(temporary).free
    fill = "import os, time\ndef fill(file):\n    for _ in range(16): os.write(file, bytes(2**20))\n"
    assert OVERFULL in reason_of(f"{fill}{program}\ntime.sleep(5)\nassert False")
    assert before - shutil.disk_usage(temporary).free < 100 * 2**20


LEFT = {
    "no rights": (
        "import os\nos.mkdir('a')\nos.close(os.open('a/b', os.O_CREAT, 0))\nos.symlink('/', "
        "'a/c')\nos.chmod('a', 0)"
    ),
    "odd names": (
        "import os\nfor name in (b'\\xff', b'a\\nb', b'-rf', b'folder', b'0', b'1'):\n    os.makedirs(name + "
        "b'/0/1')"
    ),
    "deep": "import os\nfor _ in range(100):\n    os.mkdir('a' * 200)\n    os.chdir('a' * 200)",
}


@each(LEFT)
def test_what_a_program_leaves_is_removed(program: str) -> None:
    """Folders without rights, links, odd names, and nesting far beyond the length of a path."""
    assert run_program(program, seconds=SECONDS) in (PASSED, Verdict(False, OVERFULL))


# --- The kernel itself


BARE = """
import ctypes, json, os, sys
sys.path.insert(0, sys.argv[1])
import confine
libc = ctypes.CDLL(None, use_errno=True)
column = ["x86_64", "aarch64"].index(os.uname().machine)
confine._restrict_python = lambda: None
confine.confine(os.getcwd(), 10, 2**30)
def refusal(number, *arguments):
    ctypes.set_errno(0)
    return 0 if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()
found = {}
for name, (*numbers, arguments) in json.loads(sys.argv[2]).items():
    if numbers[column] is not None:
        found[name] = refusal(numbers[column], *arguments)
        found["x32 " + name] = refusal(numbers[column] | 0x40000000, *arguments)
openat, path = (257, 56)[column], b"/etc/passwd"
found["read"] = refusal(openat, -100, path, os.O_RDONLY)
found["write"] = refusal(openat, -100, path, os.O_WRONLY)
found["truncate"] = refusal(openat, -100, path, os.O_RDONLY | os.O_TRUNC)
found["clone3"] = refusal(435, None, 0)
print(json.dumps(found))
"""
CALLS: dict[str, tuple[int | None, int | None, list[int]]] = {
    "socket": (41, 198, [1, 1, 0]), "bind": (49, 200, []), "connect": (42, 203, []), "sendmsg": (46, 211, []),
    "socketpair": (53, 199, [2, 1, 0, 0]), "io_uring_setup": (425, 425, []), "ptrace": (101, 117, []),
    "process_vm_readv": (310, 270, []), "process_vm_writev": (311, 271, []), "kill": (62, 129, [1, 0]),
    "kill own group": (62, 129, [0, 0]), "kill all": (62, 129, [-1, 0]), "tkill": (200, 130, [1, 0]),
    "tgkill": (234, 131, [1, 1, 0]), "rt_sigqueueinfo": (129, 138, []), "mount": (165, 40, []),
    "umount2": (166, 39, []), "bpf": (321, 280, []), "keyctl": (250, 219, []), "add_key": (248, 217, []),
    "unshare": (272, 97, []), "setns": (308, 268, []), "mkdirat": (258, 34, [-100, 0, 0o300]),
    "pidfd_open": (434, 434, [1, 0]), "pidfd_getfd": (438, 438, []), "pidfd_send_signal": (424, 424, []),
    "execve": (59, 221, []), "execveat": (322, 281, []), "vfork": (58, None, []), "fork": (57, None, []),
    "clone": (56, 220, [17, 0, 0, 0, 0]), "setsid": (112, 157, []), "setpgid": (109, 154, []),
    "memfd_create": (319, 279, []), "userfaultfd": (323, 282, []), "perf_event_open": (298, 241, []),
    "seccomp": (317, 277, []), "prctl": (157, 167, []), "open_by_handle_at": (304, 265, []),
    "setrlimit": (160, 164, []), "prlimit64": (302, 261, [0, 9, 4096]), "setuid": (105, 146, []),
    "fchownat": (260, 54, []), "chroot": (161, 51, []), "mknodat": (259, 33, []),
    "init_module": (175, 105, []), "reboot": (169, 142, []), "shmget": (29, 194, []),
    "truncate": (76, 45, []), "F_SETOWN": (72, 25, [0, 8, 1]), "TIOCSTI": (16, 29, [0, 0x5412, 0]),
    "CLOSE_RANGE_UNSHARE": (436, 436, [1000, 1000, 2]), "landlock_restrict_self": (446, 446, []),
    "setxattr": (188, 5, []), "sched_setaffinity": (203, 122, []),
}  # fmt: skip


def test_the_kernel_refuses_system_calls(tmp_path: Path) -> None:
    """Made directly, with no audit hook before them: EPERM for each, by the x32 numbers too; EACCES for files
    outside."""
    command = [sys.executable, "-c", BARE, str(Path(confine.__file__).parent), json.dumps(CALLS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found.pop(name) for name in ("read", "write", "truncate", "clone3")] == [13, 13, 1, 38]
    assert {name: number for name, number in found.items() if number != 1} == {}


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
    ids=["x86-64", "aarch64"],
)
def test_the_numbers_of_system_calls_are_the_kernels(column: int, header: str) -> None:
    """Both columns of the tables are what the kernel's headers say, where this machine has them."""
    if not Path(header).exists():
        pytest.skip("no kernel headers here")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    numbers.setdefault("newfstatat", numbers.get("fstatat"))
    rows = [
        row.split()
        for row in f"{confine.NAMES},{confine.FEIGNED}{confine.SOMETIMES}".split(",")
        if row.strip()
    ]
    assert len(rows) > 120
    for name, *listed in rows:
        if name != "fchmodat2":  # newer than many headers
            assert listed[column] == numbers.get(name, "-"), name


def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables hold for two architectures; on another nothing runs."""
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:4], "riscv64")))
    with pytest.raises(OSError, match="this is riscv64"):
        confine.system_calls(confine.NAMES)


def test_without_a_sandbox_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that can't confine itself says why and runs no program; callers get that as a
    FinetuneError."""
    text = Path(confine.__file__).read_text()
    without = tmp_path / "confine.py"
    shutil.copy(Path(confine.__file__).with_name("canonical.py"), tmp_path)
    without.write_text(text.replace("RESTRICT_SELF = 444,", "RESTRICT_SELF = 9999,"))
    assert without.read_text() != text
    monkeypatch.setattr(confine, "__file__", str(without))
    why_no_sandbox.cache_clear()
    try:
        assert "Landlock is needed, which Linux has since 5.13" in str(why_no_sandbox())
        with pytest.raises(FinetuneError, match="Landlock is needed"):
            run_program("x = 1")
    finally:
        why_no_sandbox.cache_clear()


# --- The parent


INTERRUPTED = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from finetune.evaluation.sandbox.runner import run_programs
run_programs(["while True: pass"] * 50, seconds=30, workers=2)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_programs_end_with_their_parent(temporary: Path, end: signal.Signals) -> None:
    """Ctrl-C ends them and removes their folders; killed outright, the parent takes them along, and the next
    removes theirs."""
    parent = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(temporary)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: len(processes_of(temporary)) >= 2)
        parent.send_signal(end)
        _, errors = parent.communicate(timeout=10)
        assert "KeyboardInterrupt" in errors or end == signal.SIGKILL
        wait_for(lambda: processes_of(temporary) == [])
    finally:
        parent.kill()
    if end == signal.SIGKILL:
        assert list(temporary.glob("finetune-program-*"))
        assert run_program("x = 1", seconds=SECONDS) == PASSED


@pytest.mark.parametrize(("seconds", "memory_bytes"), [(0.0, 2**29), (-1.0, 2**29), (5.0, 2**20)])
def test_limits_that_no_program_can_keep_are_refused(seconds: float, memory_bytes: int) -> None:
    """No time, or less memory than Python takes."""
    with pytest.raises(FinetuneError, match="a program needs time and"):
        run_program("x = 1", seconds=seconds, memory_bytes=memory_bytes)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample() -> None:
    """As counted over all subsets of k samples; at k = 1 it is the share of correct samples."""
    for samples, correct in ((5, 0), (5, 2), (6, 1), (7, 7)):
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(range(samples), k))
            hits = sum(min(subset) < correct for subset in subsets)
            assert pass_at_k(samples, correct, k) == pytest.approx(hits / len(subsets), abs=1e-12)
    assert pass_at_k(200, 17, 1) == pytest.approx(17 / 200)
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)]
)
def test_pass_at_k_needs_k_samples(samples: int, correct: int, k: int) -> None:
    """And no more correct ones than samples."""
    with pytest.raises(FinetuneError, match="undefined"):
        pass_at_k(samples, correct, k)

"""What the process of one generated program does to itself before it runs the program; `sandbox` starts it.

Standard library only:

    python -s -S -P -B -X utf8 confine.py CHANNEL SECONDS MEMORY_BYTES PARENT < token and program

The kernel holds the program, whatever it does in its own process: rlimits for time, memory and files,
Landlock for its folder, and a seccomp filter that lets through the calls listed here and refuses all others.
The audit hook on top is for clear reasons, and closes the shortest ways to a forged pass; it is no wall.

What goes through the channel, a line each: `?NUMBER VALUE` asks the parent whether a value is the expected
one that it keeps (one byte back: = or !), the token says that the program came to its end, and anything else
is why it failed.
"""

import _imp
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable

FILE_BYTES = 16 * 2**20
"""What one file may hold."""
OPEN_FILES = 32
TOKEN_BYTES = 32
PROGRAM = "<program>"
EXPECTED = "__expected__"
"""What a program calls the values that the parent keeps: __expected__[0] is the first."""

SystemCall = Callable[..., int]

# --- Landlock: see linux/landlock.h. Its calls have one number everywhere.

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
# Not in the folder either: running a file (bit 0), devices (6 and 11), sockets (9), FIFOs (10), device ioctls
# (15).
FOLDER_RIGHTS = 0x7FFF & ~(1 << 0 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11)
HANDLED_FILES = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}  # by ABI, the last for later ones too
READABLE = (
    *(
        os.path.join(prefix, lib)
        for prefix in {sys.base_prefix, sys.base_exec_prefix}
        for lib in ("lib", "lib64")
    ),
    os.path.dirname(os.__file__),
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    *("/usr/share/zoneinfo", "/etc/mime.types", "/dev/urandom"),
)

# --- seccomp: the number of each call on x86-64 and on aarch64.

NAMES = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, close 3 57, dup 32 23, dup2 33 -, dup3 292 24, lseek 8 62,
fstat 5 80, ftruncate 77 46, fadvise64 221 223, fsync 74 82, fdatasync 75 83, flock 73 32,
sendfile 40 71, copy_file_range 326 285, getdents64 217 61, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73,
select 23 -, pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
eventfd2 290 19, recvfrom 45 207,

newfstatat 262 79, stat 4 -, lstat 6 -, statx 332 291, statfs 137 43, fstatfs 138 44, access 21 -, faccessat 269 48,
faccessat2 439 439, readlink 89 -, readlinkat 267 78, getcwd 79 17, chdir 80 49, fchdir 81 50,
rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37,
symlink 88 -, symlinkat 266 36, listxattr 194 11, llistxattr 195 12, flistxattr 196 13,

mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, msync 26 227, brk 12 214,

futex 202 98, rseq 334 293, set_robust_list 273 99, set_tid_address 218 96, gettid 186 178, sched_yield 24 124,
sched_getaffinity 204 123, exit 60 93, exit_group 231 94, restart_syscall 219 128, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133, rt_sigtimedwait 128 137,
sigaltstack 131 132, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102, wait4 61 260, waitid 247 95,

clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101, gettimeofday 96 169, time 201 -,
times 100 153, getrandom 318 278, uname 63 160, sysinfo 99 179, getpid 39 172, getppid 110 173, getpgid 121 155,
getpgrp 111 -, getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158,
getresuid 118 148, getresgid 120 150, getrusage 98 165, getrlimit 97 163,
"""
# Landlock doesn't watch these, so they'd work on files anywhere. shutil.copy and its like need them to
# succeed, so they do, and change nothing. With umask, folders could be made that the parent may not look
# into.
FEIGNED = "chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utimensat 280 88, umask 95 166,"
# Let through by their arguments: see _filter. prctl, capget and capset are for this module alone.
SOMETIMES = """
openat 257 56, clone 56 220, clone3 435 435, kill 62 129, tgkill 234 131, fcntl 72 25, ioctl 16 29, prlimit64 302 261,
socketpair 53 199, sendto 44 206, prctl 157 167, mkdir 83 -, mkdirat 258 34, fallocate 285 47, capget 125 90,
capset 126 91, close_range 436 436,
"""
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of the tables, and what seccomp calls the architecture (linux/audit.h)."""
SET_DEATH_SIGNAL, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 1, 22, 38  # prctl
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # what seccomp does; FAIL takes the error's number
LOAD, AND, EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # classic BPF
CLONE_THREAD = 0x10000 | 0x400  # CLONE_FILES too: one table of descriptors, which the parent counts
CAPABILITIES_VERSION, ANY_FILE = 0x20080522, 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and _READ_SEARCH
IOCTLS = (0x5401, 0x5421, 0x5450, 0x5451)  # TCGETS, FIONBIO, FIONCLEX, FIOCLEX
FCNTLS = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    1030,
)  # F_DUPFD to F_SETLKW (no F_SETOWN, which sends signals), F_DUPFD_CLOEXEC


def main() -> None:
    """Confine this process, run the program, and write the token, or why the program failed, to the
    channel."""
    channel, seconds, memory_bytes, parent = (int(argument) for argument in sys.argv[1:])
    held, program = _read_input()
    expected = _stand_ins(channel)
    try:
        confine(os.getcwd(), seconds, memory_bytes)
    except (OSError, ValueError, ImportError) as error:
        os.write(channel, f"can't be confined: {error}\n".encode())
        os._exit(1)
    if os.getppid() != parent:  # it died before this process was to die with it
        os._exit(1)
    out_of_memory = f"used more memory than {memory_bytes / 2**20:g} MB\n"
    _run(held, program, expected, channel, out_of_memory.encode())
    os._exit(0)


def confine(folder: str, seconds: int, memory_bytes: int) -> None:
    """Leave this process its folder, Python's library, its memory and its time. Raises OSError where the
    kernel can't."""
    call = _system_call()
    numbers = system_calls(SOMETIMES)
    # Whoever kills the parent kills this process too.
    call(numbers["prctl"], SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    call(numbers["prctl"], SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _restrict_files(call, folder)
    _drop_capabilities(call)
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(limit)
        most = sys.maxsize if most == resource.RLIM_INFINITY else most
        # A soft limit below the hard one: SIGXCPU, which comes first, says what it was for; SIGKILL doesn't.
        resource.setrlimit(limit, (min(value, most), min(value + 1, most)))
    _restrict_system_calls(call)
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    _restrict_python()


def system_calls(table: str) -> dict[str, int]:
    """The numbers of a table's calls on this machine, where it has them. Raises OSError for an unknown
    processor."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES or struct.calcsize("P") != 8:
        raise OSError(f"x86-64 and 64-bit ARM processors are supported, this is {machine}")
    column = ARCHITECTURES[machine][0]
    rows = (row.split() for row in table.split(",") if row.strip())
    return {name: int(numbers[column]) for name, *numbers in rows if numbers[column] != "-"}


def _read_input() -> tuple[list[bytes], str]:
    """The token, in a list to be emptied, and the program; afterwards standard input is empty."""
    with open(0, "rb") as stream:
        given = stream.read()
    os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is free: 0
    return [given[:TOKEN_BYTES] + b"\n"], given[TOKEN_BYTES:].decode("utf-8", "surrogatepass")


def _run(held: list[bytes], program: str, expected: object, channel: int, out_of_memory: bytes) -> None:
    """Run the program to its end as the main module; write the token, or why it failed."""
    folder = os.getcwd()
    module = type(sys)("__main__")
    sys.modules["__main__"], sys.argv = module, [PROGRAM]
    vars(module)[EXPECTED] = expected
    try:
        code = compile(program, PROGRAM, "exec")
        # While the program runs the token is no variable and in no container: it waits on the interpreter's
        # own stack, which no frame shows.
        os.write(channel, (held.pop(), exec(code, vars(module)))[0])  # type: ignore[func-returns-value]  # noqa: S102
    except MemoryError:
        os.write(channel, out_of_memory)
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are failures like others
        os.write(
            channel,
            " ".join(_reason(error, program, folder)[:500].split()).encode("utf-8", "replace") + b"\n",
        )


def _stand_ins(channel: int) -> object:
    """What the program finds under EXPECTED; made by the file beside this one, which the program doesn't
    find."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    try:
        made: object = __import__("canonical").stand_ins(channel)
        return made
    finally:
        del sys.path[0], sys.modules["canonical"]


def _reason(error: BaseException, program: str, folder: str) -> str:
    """Why the program failed, and at which of its lines."""
    if isinstance(error, SystemExit):
        return "exited early"
    trace, line = error.__traceback__, 0
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == PROGRAM else line
        trace = trace.tb_next
    place, text = (f" (line {line})" if line else ""), str(error)
    if isinstance(error, PermissionError) and error.strerror:
        outside = next(
            (name for name in (error.filename, error.filename2) if name and not _within(name, folder)), None
        )
        if outside is not None:
            return f"tried to open a file outside its folder: {os.fsdecode(outside)}{place}"
        # The hook's own words, or the kernel's.
        return (
            error.strerror if error.strerror.startswith("tried") else f"was refused by the sandbox: {text}"
        ) + place
    if isinstance(error, AssertionError):
        # Python ends a line at these alone.
        lines = program.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return f"assertion failed: {text or lines[line - 1].strip()}{place}"
    return f"{type(error).__name__}: {text}{place}"


def _within(name: str, folder: str) -> bool:
    """Whether a file is in the folder, symbolic links followed."""
    return os.path.commonpath([folder, os.path.realpath(os.path.join(folder, os.fsdecode(name)))]) == folder


def _system_call() -> SystemCall:
    """A function that makes the system call of a number. Raises OSError where the kernel refuses."""
    _load_ctypes()
    import ctypes  # here, so that the program finds no reference to it

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def call(number: int, *arguments: int | bytes | None) -> int:
        wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments)]
        result = int(libc.syscall(*wide))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    return call


def _load_ctypes() -> None:
    """Load ctypes' shared object under a name that nobody knows: before 3.13 what is loaded once is had again
    by its name."""
    found = sys.meta_path[-1].find_spec("_ctypes", None)
    if found is None or found.origin is None:  # it is built in
        return
    name = f"{os.urandom(8).hex()}._ctypes"
    spec = type(found)(name, type(found.loader)(name, found.origin), origin=found.origin)  # type: ignore[call-arg, misc]
    sys.modules["_ctypes"] = _imp.create_dynamic(spec)
    _imp.exec_dynamic(sys.modules["_ctypes"])


def _restrict_files(call: SystemCall, folder: str) -> None:
    """Landlock: write in the folder, read in Python's library and the system's; no TCP, no signals to
    others."""
    try:
        version = call(CREATE_RULESET, None, 0, 1)
    except OSError as error:
        raise OSError(
            "Landlock is needed, which Linux has since 5.13 unless it is switched off at boot (lsm=)"
        ) from error
    handled = HANDLED_FILES[min(version, 5)]
    network = 3 if version >= 4 else 0  # binding and connecting TCP
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals
    ruleset = call(CREATE_RULESET, struct.pack("QQQ", handled, network, scoped), 24, 0)
    rules = [(path, READ_FILE | READ_DIR) for path in READABLE]
    for path, rights in [*rules, (os.devnull, READ_FILE | WRITE_FILE), (folder, FOLDER_RIGHTS)]:
        if not os.path.exists(path):
            continue
        if not os.path.isdir(path):
            rights &= READ_FILE | WRITE_FILE
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & handled, beneath), 0)
        os.close(beneath)
    call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _drop_capabilities(call: SystemCall) -> None:
    """Where root starts it: no more rights than anybody's, but those to files, which are Landlock's to
    restrict."""
    import ctypes

    numbers, header = system_calls(SOMETIMES), struct.pack("Ii", CAPABILITIES_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    call(numbers["capget"], header, held)
    effective, permitted, *_ = struct.unpack("6I", held)
    call(numbers["capset"], header, struct.pack("6I", effective & ANY_FILE, permitted & ANY_FILE, 0, 0, 0, 0))


def _restrict_system_calls(call: SystemCall) -> None:
    """seccomp: let through what _filter allows."""
    import ctypes

    steps = b"".join(struct.pack("HBBI", *step) for step in _filter())
    held = ctypes.create_string_buffer(steps)
    program = struct.pack("HP", len(steps) // 8, ctypes.addressof(held))
    try:
        call(system_calls(SOMETIMES)["prctl"], SET_SECCOMP, 2, program, 0, 0)
    except OSError as error:
        raise OSError(
            "seccomp filters are needed (CONFIG_SECCOMP_FILTER), and this kernel refuses them"
        ) from error


Step = tuple[int, int, int, int]
"""One step of classic BPF: what to do, how many steps to skip where a comparison holds and where not, the
operand."""


def _filter() -> list[Step]:
    """Listed calls pass, some by their arguments; all others fail with EPERM, and another architecture's kill
    the process."""
    numbers = system_calls(SOMETIMES)
    refuse = FAIL | errno.EPERM
    steps: list[Step] = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, ARCHITECTURES[os.uname().machine][1]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),
    ]
    for number in system_calls(NAMES).values():
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for number in system_calls(FEIGNED).values():
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, FAIL)]
    # glibc takes clone, whose flags can be looked at, where there is no clone3.
    steps += [(EQUAL, 0, 1, numbers["clone3"]), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    own = [os.getpid()]
    steps += _when(numbers["clone"], 0, [CLONE_THREAD], mask=CLONE_THREAD)
    # With CLOSE_RANGE_UNSHARE a thread would have a table of descriptors of its own.
    steps += _when(numbers["close_range"], 2, [0])
    # A folder that its owner may not list would hide what is in it.
    steps += _when(numbers["mkdirat"], 2, [0o700], mask=0o700)
    steps += _when(numbers["mkdir"], 1, [0o700], mask=0o700) if "mkdir" in numbers else []
    # Room would be taken faster than the parent looks; glibc writes instead.
    steps += [(EQUAL, 0, 1, numbers["fallocate"]), (RETURN, 0, 0, FAIL | errno.EOPNOTSUPP)]
    steps += _when(numbers["kill"], 0, own) + _when(numbers["tgkill"], 0, own)
    steps += _when(numbers["fcntl"], 1, FCNTLS) + _when(numbers["ioctl"], 1, IOCTLS)
    # Before Landlock's ABI 3, opening for reading and truncating would do for a file that may be read.
    writes = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC]
    steps += _when(numbers["openat"], 2, writes, mask=os.O_ACCMODE | os.O_TRUNC)
    # asyncio wakes itself through a pair; without an address nothing else is reached.
    steps += _when(numbers["socketpair"], 0, [1])
    steps += _when_null(numbers["sendto"], 4) + _when_null(numbers["prlimit64"], 2)
    return [*steps, (RETURN, 0, 0, refuse)]


def _when(number: int, argument: int, values: Iterable[int], *, mask: int = 0xFFFFFFFF) -> list[Step]:
    """Let the call through where its argument (32 bits) is one of the values, under the mask."""
    body: list[Step] = [(LOAD, 0, 0, 16 + 8 * argument), (AND, 0, 0, mask)]
    for value in values:
        body += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    body += [(RETURN, 0, 0, FAIL | errno.EPERM)]
    return [(EQUAL, 0, len(body), number), *body]


def _when_null(number: int, argument: int) -> list[Step]:
    """Let the call through where its argument, a pointer, is null."""
    low = 16 + 8 * argument
    return [
        *(
            (EQUAL, 0, 6, number),
            (LOAD, 0, 0, low),
            (EQUAL, 0, 3, 0),
            (LOAD, 0, 0, low + 4),
            (EQUAL, 0, 1, 0),
        ),
        *((RETURN, 0, 0, ALLOW), (RETURN, 0, 0, FAIL | errno.EPERM)),
    ]


def _restrict_python() -> None:
    """Refuse with a clear reason what the kernel would refuse, and what reads or jumps into the interpreter's
    own frames."""
    library = tuple(f"{folder}/" for folder in sys.path if folder)

    # Nested and made of literals: the program finds no reference to it and no table to empty.
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        match event, arguments:
            case (
                "os.exec"
                | "os.fork"
                | "os.forkpty"
                | "os.posix_spawn"
                | "os.spawn"
                | "os.system"
                | "pty.spawn"
                | "subprocess.Popen",
                _,
            ):
                raise PermissionError(1, "tried to start a process")
            case (
                "socket.connect"
                | "socket.bind"
                | "socket.getaddrinfo"
                | "socket.gethostbyname"
                | "socket.gethostbyaddr",
                _,
            ):
                raise PermissionError(1, "tried to reach the network")
            case ("socket.__new__", (_, family, *_)) if (
                family != 1
            ):  # a Unix socket may be one of a pair; the kernel knows
                raise PermissionError(1, "tried to reach the network")
            case ("import", (str() as name, *_)) if name.rpartition(".")[2] in (
                "_ctypes",
                "_testcapi",
                "_testinternalcapi",
            ):
                raise PermissionError(1, f"tried to use {name}")
            case ("import", (_, str() as file, *_)):
                # Native code: that of the standard library, which is known not to run somebody's own or read
                # memory.
                folder, _, name = file.rpartition("/")
                if f"{folder}/" not in library or f" {name.partition('.')[0]} " not in (
                    " _asyncio _bisect _blake2 _bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp "
                    "_codecs_kr _codecs_tw _contextvars _crypt _csv _datetime _decimal _elementtree _hashlib "
                    "_heapq _hmac _json _lzma _md5 _multibytecodec _multiprocessing _opcode _pickle "
                    "_posixshmem _posixsubprocess _queue _random _sha1 _sha2 _sha256 _sha3 _sha512 _socket "
                    "_sqlite3 _ssl _statistics _struct _typing _uuid _zoneinfo _zstd array audioop binascii "
                    "cmath fcntl grp math mmap pyexpat resource select termios unicodedata zlib "
                ):
                    raise PermissionError(1, f"tried to load native code: {file}")
            case (
                "gc.get_objects"
                | "gc.get_referrers"
                | "gc.get_referents"
                | "sys.addaudithook"
                | "sys.monitoring.register_callback"
                | "sys.setprofile"
                | "sys.settrace"
                | "sqlite3.enable_load_extension",
                _,
            ):
                raise PermissionError(1, f"tried to use {event}")
            case ("cpython.PyInterpreterState_New", _):
                raise PermissionError(1, "tried to start another interpreter")
            case ("mmap.__new__", (fileno, *_)) if fileno != -1:
                raise PermissionError(1, "tried to map a file into memory")
            case _ if event.startswith("ctypes."):
                raise PermissionError(1, "tried to use ctypes")

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()

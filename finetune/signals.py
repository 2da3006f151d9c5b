"""What signals ask of a training: to stop, or to save a checkpoint and go on. Torch-free, to listen from the
first moment."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Stop with a checkpoint; schedulers send SIGUSR1 (Slurm's --signal) before the time is up."""
SAVE = signal.SIGUSR2
"""Save a checkpoint and go on."""
NOTHING, SAVING, STOPPING = range(3)
PR_SET_PDEATHSIG = 1
INTERRUPTED, STOPPED = 130, 75
"""Exit codes: ended by Ctrl-C, as shells count it; ended by another signal, to be started again (EX_TEMPFAIL
of sysexits.h)."""


class Stopped(KeyboardInterrupt):
    """A scheduler's signal asked for the end: the same command, started again, continues."""


class Requests:
    """What was asked of this process so far.

    Before there is anything to save a request to stop is a KeyboardInterrupt; while `deferring` it waits
    until it is looked at. Asking twice is asking once, because schedulers and launchers repeat each other;
    Ctrl-C after a request stops at once, and so does the end of `grace_seconds` where they are given.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.grace_seconds: float | None = None
        """How long after a request the step and its checkpoint may take; None: as long as they do."""
        self.saves = 0
        """How often a checkpoint was asked for."""
        self.exits = False
        """Whether the process exits when nobody listens any more: it has done what was asked for then, and
        launchers and schedulers, which repeat each other, are not to kill it."""
        self._deferrals = 0

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """While this lasts, for any of those who ask for it, a request to stop waits."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1

    @contextmanager
    def bounded(self, grace_seconds: float | None) -> Iterator[None]:
        """While this lasts a request to stop has so many seconds; None: as many as it takes."""
        if grace_seconds is None:
            yield
            return
        before = signal.signal(signal.SIGALRM, self.too_late)
        self.grace_seconds = grace_seconds
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self.grace_seconds = None

    def asked_for(self, saves_done: int) -> int:
        """What is to be done now: NOTHING, SAVING (where more saves were asked for than are done) or
        STOPPING; the largest of several processes' counts."""
        if self.stop is not None:
            return STOPPING
        return SAVING if self.saves > saves_done else NOTHING

    def ending(self) -> KeyboardInterrupt:
        """What ends a training that was stopped: Stopped, but for Ctrl-C."""
        return KeyboardInterrupt() if self.stop is signal.SIGINT else Stopped()

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        asked, before = signal.Signals(number), self.stop
        if asked is SAVE:
            self.saves += 1
            logger.info(f"{asked.name}: saving a checkpoint after this step")
            return
        self.stop = before or asked
        if before is None and self._deferrals:
            logger.info(
                f"{asked.name}: finishing this step and saving a checkpoint (Ctrl-C again to stop at once)"
            )
            if self.grace_seconds is not None:
                signal.setitimer(signal.ITIMER_REAL, self.grace_seconds)
        elif before is None or asked is signal.SIGINT:
            self._end()

    def too_late(self, number: int, frame: FrameType | None) -> None:
        """The handler of the clock that `grace_seconds` set."""
        logger.warning(
            f"the {self.grace_seconds:g} seconds of --grace-seconds are over: stopping at once, without "
            "another checkpoint"
        )
        self._end()

    def _end(self) -> None:
        ending = self.ending()
        _endings.append(STOPPED if isinstance(ending, Stopped) else INTERRUPTED)
        raise ending


_endings: list[int] = []


def interrupts() -> int:
    """How often a signal has ended what this process was doing, whatever error came of that: an import that
    is cut off may fail in its own way, and the KeyboardInterrupt be lost."""
    return len(_endings)


def exit_code() -> int:
    """Of the signal that last did."""
    return _endings[-1]


_listening: Requests | None = None


def ending() -> KeyboardInterrupt:
    """What ends the program whose training was stopped: see Requests.ending."""
    return (_listening or Requests()).ending()


@contextmanager
def listening(grace_seconds: float | None = None) -> Iterator[Requests]:
    """Take the signals over while this lasts; inside another one, the same requests. What is ignored (nohup
    ignores SIGHUP) stays ignored. Outside the main thread, where Python takes no signals, nothing is ever
    asked. `grace_seconds` are counted while this lasts: see Requests.
    """
    global _listening
    if threading.current_thread() is not threading.main_thread():
        yield _listening or Requests()
        return
    if _listening is not None:
        with _listening.bounded(grace_seconds):
            yield _listening
        return
    _listening = Requests()
    taken = [name for name in (*STOP, SAVE) if signal.getsignal(name) not in (signal.SIG_IGN, None)]
    previous = {name: signal.signal(name, _listening.note) for name in taken}
    try:
        release()
        with _listening.bounded(grace_seconds):
            yield _listening
    finally:
        deaf = _listening.exits and _listening.stop is not None
        for name, handler in previous.items():
            signal.signal(name, signal.SIG_IGN if deaf else handler)
        _listening = None


def come_when_parent_ends(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it ends, however that happens
    (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def hold() -> None:
    """Let this thread, and the processes that it starts, keep signals for when somebody listens: until then
    they would kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP, SAVE))


def release() -> None:
    """Deliver what was held back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOP, SAVE))

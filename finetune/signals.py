"""What signals ask of a training: to stop, or to save a checkpoint and go on. Torch-free, to listen from the
first moment."""

import logging
import signal
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


class Requests:
    """What was asked of this process so far.

    Before there is anything to save a request to stop is a KeyboardInterrupt; while `deferring` it waits
    until it is looked at. Asking twice is asking once, because schedulers and launchers repeat each other;
    Ctrl-C after a request stops at once.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.saves = 0
        """How often a checkpoint was asked for."""
        self._deferrals = 0

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """While this lasts, for any of those who ask for it, a request to stop waits."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1

    def asked_for(self, saves_done: int) -> int:
        """What is to be done now: NOTHING, SAVING (where more saves were asked for than are done) or
        STOPPING; the largest of several processes' counts."""
        if self.stop is not None:
            return STOPPING
        return SAVING if self.saves > saves_done else NOTHING

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
        elif before is None or asked is signal.SIGINT:
            global _interrupts
            _interrupts += 1
            raise KeyboardInterrupt


_interrupts = 0


def interrupts() -> int:
    """How often a signal has ended what this process was doing, whatever error came of that: an import that
    is cut off may fail in its own way, and the KeyboardInterrupt be lost."""
    return _interrupts


_listening: Requests | None = None


@contextmanager
def listening() -> Iterator[Requests]:
    """Take the signals over while this lasts; inside another one, the same requests. What is ignored (nohup
    ignores SIGHUP) stays ignored. Outside the main thread, where Python takes no signals, nothing is ever
    asked.
    """
    global _listening
    if _listening is not None or threading.current_thread() is not threading.main_thread():
        yield _listening or Requests()
        return
    _listening = Requests()
    taken = [name for name in (*STOP, SAVE) if signal.getsignal(name) not in (signal.SIG_IGN, None)]
    previous = {name: signal.signal(name, _listening.note) for name in taken}
    try:
        release()
        yield _listening
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
        _listening = None


def hold() -> None:
    """Let this thread, and the processes that it starts, keep signals for when somebody listens: until then
    they would kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP, SAVE))


def release() -> None:
    """Deliver what was held back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOP, SAVE))

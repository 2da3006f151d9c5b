"""What signals ask of a training; real signals, to this process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from finetune import signals
from tests.support.messages import hearing

pytestmark = pytest.mark.usefixtures("hangup_heard")


def send(name: signal.Signals) -> None:
    """To this process; Python runs the handler before the next line."""
    os.kill(os.getpid(), name)


def send_twice_and_wait(seconds: float) -> None:
    """A stop, as launchers repeat it, in the midst of something long."""
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    time.sleep(seconds)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_before_there_is_anything_to_save_a_stop_is_the_end(name: signal.Signals) -> None:
    """Such a signal ends what runs, with its own exit code; a second one, while what was begun is taken back,
    doesn't."""
    with signals.listening() as requests:
        with pytest.raises(signals.Stopped):
            send(name)
        assert signals.exit_code() == 75
        send(name)
        send(signal.SIGTERM)
        assert requests.stop == name


def test_an_interrupt_that_an_import_lost_is_still_one() -> None:
    """What it interrupted may fail in its own way, as half an import does: the exit code is an
    interrupt's."""
    before = signals.interrupts()

    def half_an_import() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RecursionError from None

    with signals.listening(), pytest.raises(RecursionError):
        half_an_import()
    assert signals.interrupts() == before + 1


def test_a_deferred_stop_waits_and_is_the_first_one() -> None:
    """Later signals repeat it, as schedulers and launchers do; Ctrl-C after it stops at once."""
    said: list[str] = []
    with hearing(said.append), signals.listening() as requests, requests.deferring():
        assert requests.asked_for(0) == signals.NOTHING
        for name in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            send(name)
        assert requests.asked_for(0) == signals.STOPPING
        assert said == ["SIGUSR1: finishing this step and saving a checkpoint (Ctrl-C again to stop at once)"]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_ctrl_c_ends_as_ctrl_c() -> None:
    """It is no scheduler's signal, also where it comes after one."""
    with signals.listening():
        with pytest.raises(KeyboardInterrupt) as raised:
            send(signal.SIGINT)
        assert not isinstance(raised.value, signals.Stopped)
        assert signals.exit_code() == 130


def test_a_stop_that_takes_too_long_ends_at_once() -> None:
    """When the seconds of grace are over the step is broken off; without a request their clock never runs."""
    said: list[str] = []
    started = time.monotonic()
    with hearing(said.append), signals.listening(0.2) as requests, requests.deferring():
        time.sleep(0.3)
        with pytest.raises(signals.Stopped):
            send_twice_and_wait(10)
    assert time.monotonic() - started < 5
    assert said[1:] == [
        "warning: the 0.2 seconds of --grace-seconds are over: stopping at once, without another checkpoint"
    ]


def test_a_stop_in_time_is_no_longer_watched() -> None:
    """The clock ends with the listening, and SIGALRM is what it was."""
    before = signal.getsignal(signal.SIGALRM)
    with signals.listening(0.1) as requests, requests.deferring():
        send(signal.SIGTERM)
    time.sleep(0.2)
    assert signal.getsignal(signal.SIGALRM) is before


def test_saving_is_asked_for_once() -> None:
    """SIGUSR2 before the first step is remembered, two of them are one, and it never stops anything."""
    with signals.listening() as requests:
        send(signal.SIGUSR2)
        send(signal.SIGUSR2)
        assert [requests.asked_for(0), requests.asked_for(2)] == [signals.SAVING, signals.NOTHING]
        with requests.deferring():
            send(signal.SIGUSR2)
            send(signal.SIGTERM)
        assert requests.asked_for(2) == signals.STOPPING


def test_handlers_are_put_back_and_what_is_ignored_stays_ignored() -> None:
    """nohup's SIGHUP goes on being ignored; after the training everything is as before. An inner listener is
    the outer one."""
    before = {name: signal.getsignal(name) for name in (*signals.STOP, signals.SAVE)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.listening() as outer, signals.listening() as inner:
            assert inner is outer
            send(signal.SIGHUP)
            assert outer.stop is None
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {name: signal.getsignal(name) for name in before} == before


def test_beside_the_main_thread_nothing_is_taken_over() -> None:
    """A training in another thread of somebody's program leaves the program its signals."""
    found = []

    def work() -> None:
        with signals.listening() as requests:
            found.append(requests.stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_what_is_held_back_is_delivered_to_who_listens() -> None:
    """A child that inherits the hold is not killed by what comes before it listens, and gets it then."""
    program = (
        "import sys, time\nfrom finetune import signals\nprint('up', flush=True)\ntime.sleep(0.5)\n"
        "with signals.listening() as requests:\n    print(requests.asked_for(0), flush=True)\n"
    )
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    signals.hold()
    try:
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGUSR2)
    time.sleep(0.05)
    assert child.stdout.readline() == f"{signals.SAVING}\n"
    assert child.wait(10) == 0

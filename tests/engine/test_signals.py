"""Signals: noted while a search steps, obeyed at once elsewhere, handlers put back."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from fastdarts.engine import SignalHandler, Stopped
from fastdarts.engine.signals import SIGNALS


def send(number):
    os.kill(os.getpid(), number)


def send_in_vain(number):
    send(number)
    pytest.fail("went on")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_signal_interrupts_undeferred_code(number, status):
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Stopped) as stopped, SignalHandler():
        send_in_vain(number)
    assert stopped.value.status == status and str(stopped.value) == signal.Signals(number).name
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_stop_is_not_caught_by_except_exception():
    with pytest.raises(Stopped), SignalHandler(), suppress(Exception):
        send(signal.SIGTERM)


def test_deferred_signal_is_recorded():
    with SignalHandler() as signals, signals.deferred():
        send(signal.SIGTERM)
        send(signal.SIGUSR1)  # the first one counts
        assert signals.signal == signal.SIGTERM
        with pytest.raises(Stopped, match="SIGTERM"):
            signals.check()
        with pytest.raises(Stopped, match="SIGTERM"), signals.at_once():
            pytest.fail("went on")


def test_at_once_interrupts_inside_deferred():
    with SignalHandler() as signals, signals.deferred():
        with signals.at_once():
            pass
        with pytest.raises(Stopped), signals.at_once():
            send_in_vain(signal.SIGUSR1)


def test_shared_deferral_is_not_interrupted():
    with SignalHandler() as signals, signals.deferred():
        with signals.deferred(shared=True):
            with signals.at_once():
                send(signal.SIGTERM)
            with signals.deferred(), signals.at_once():
                assert signals.signal == signal.SIGTERM
        with pytest.raises(Stopped), signals.at_once():
            pytest.fail("went on")


def test_agreed_signal_is_used():
    with SignalHandler() as signals, signals.deferred():
        stopped = signals.agreed(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert (stopped.number, stopped.agreed, signals.signal) == (signal.SIGUSR1, True, signal.SIGUSR1)


def test_other_threads_do_not_install_handlers():
    seen = []

    def enter():
        with SignalHandler():
            seen.extend(signal.getsignal(n) for n in SIGNALS)

    before = [signal.getsignal(n) for n in SIGNALS]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == before


def test_second_interrupt_ends_process_at_once(root):
    code = """
import os, signal
from fastdarts.engine import SignalHandler
with SignalHandler() as signals, signals.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    print("noted", signals.signal, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == -signal.SIGINT and done.stdout == "noted 2\n"

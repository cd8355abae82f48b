"""Stop a run on SIGTERM, SIGINT (Ctrl-C), and SIGUSR1, sent by SLURM before a job's time limit.

During a step: finish the step, save a checkpoint and exit. While waiting for input, evaluating, drawing or preparing (files
are checked, the cache is filled): exit immediately. With several ranks, a signal to any of them ends all, once they have
agreed on it: after a step, or after a batch of an evaluation.
"""

import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sized
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 75  # exit status after SIGTERM or SIGUSR1 (EX_TEMPFAIL): the same command continues the run
INTERRUPTED = 130  # exit status after Ctrl-C, as in shells


class Stopped(BaseException):
    """Request to stop the run. Not an Exception, like KeyboardInterrupt, so that error handlers do not catch it.

    agreed  all ranks stop, not only this one
    """

    def __init__(self, number: int, agreed: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.agreed = number, agreed

    @property
    def status(self) -> int:
        """Return the exit status: AGAIN, or INTERRUPTED."""
        return INTERRUPTED if self.number == signal.SIGINT else AGAIN


class SignalHandler:
    """Context manager: installs signal handlers (main thread only) and restores the previous ones on exit.

    A second SIGINT ends the process immediately, by the default handler.
    """

    def __init__(self) -> None:
        self.signal = 0  # received signal, or 0
        self._at_once, self._shared = True, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._come) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def deferred(self, shared: bool = False) -> Generator[None]:
        """Context manager: only records a signal. shared: also in `at_once`, since several ranks must agree to stop."""
        yield from self._set(False, shared or self._shared)

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Context manager: a new or recorded signal raises Stopped immediately, also inside `deferred`."""
        if not self._shared:
            self.check()
        yield from self._set(self._at_once or not self._shared, self._shared)

    def check(self) -> None:
        """Raise Stopped if a signal was received."""
        if self.signal:
            raise Stopped(self.signal)

    def agreed(self, number: int) -> Stopped:
        """Return the exception that all ranks raise for a signal to any of them; later signals have no effect."""
        self.signal = number
        return Stopped(number, agreed=True)

    def _set(self, at_once: bool, shared: bool) -> Iterator[None]:
        before = self._at_once, self._shared
        self._at_once, self._shared = at_once, shared
        try:
            yield
        finally:
            self._at_once, self._shared = before

    def _come(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if not self.signal:
            self.signal = number
            if self._at_once:
                raise Stopped(number)


class Batches(Sized, Protocol[T_co]):
    """Finite loader."""

    def __iter__(self) -> Iterator[T_co]: ...


class InterruptibleLoader(Generic[T_co]):
    """Iterate over a rank's `batches`; after each, all ranks check for a stop request.

    ask   called equally often on all ranks, once per batch of the rank with the most; may raise
    most  largest number of batches over the ranks
    """

    def __init__(self, batches: Batches[T_co], ask: Callable[[], None], most: Callable[[int], int]) -> None:
        self.batches, self.ask, self.most = batches, ask, most

    def __iter__(self) -> Iterator[T_co]:
        own = len(self.batches)
        more = self.most(own) - own
        for batch in self.batches:
            yield batch
            self.ask()
        for _ in range(more):
            self.ask()

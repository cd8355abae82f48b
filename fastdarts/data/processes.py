"""Worker processes that decode: requests reach them through pipes, their images come back in shared memory.

Notation: W processes, N images a batch, S pixels a side.
"""

import math
import mmap
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from threading import Thread
from typing import Any

import numpy as np
import torch

from fastdarts.data.errors import InputStopped, shortage
from fastdarts.data.view import View
from fastdarts.data.workers import Answer, Decoder, Request

EACH = 2  # batches that a process is asked for before the first is taken
LOOK = 1.0  # seconds between two looks whether the process at the other end is alive
GRACE = 5.0  # seconds that a process has to end
GUARD = "a script that starts worker processes needs `if __name__ == '__main__':` around what it does"
FEWER = "take fewer --workers, of which 0 decodes in a thread"


class Slots:
    """Memory for `count` batches, shared with the processes that are started while it is open.

    `batches` is an array of records: "images", uint8 (N, S, S, 3), and "at", the number of the image that is decoded now.
    The memory has no name: it takes no room in /dev/shm, which containers keep small, and is gone with its last process.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        file = os.memfd_create("fastdarts-batches")
        os.ftruncate(file, count * (8 + math.prod(shape)))
        self._map(file, shape)

    def _map(self, file: int, shape: tuple[int, ...]) -> None:
        self._file, self._shape = file, shape
        record = np.dtype([("at", np.int64), ("images", np.uint8, shape)])
        self.batches = np.frombuffer(mmap.mmap(file, 0), record)

    def __getstate__(self) -> tuple[Any, tuple[int, ...]]:
        return DupFd(self._file), self._shape

    def __setstate__(self, state: tuple[Any, tuple[int, ...]]) -> None:
        file, shape = state
        self._map(file.detach(), shape)

    def close(self) -> None:
        """No process is started any more; the memory stays."""
        os.close(self._file)


class Pool:
    """W processes that decode in turn. It must be closed."""

    def __init__(self, view: View, shape: tuple[int, ...], workers: int) -> None:
        """shape: of the largest batch, (N, S, S, 3). Raises InputStopped where a process or its memory cannot be had."""
        self.what = f"a process that decodes {view.stream.name.lower()} images"
        self._processes: list[tuple[BaseProcess, Connection]] = []
        self._asked: deque[tuple[int, Request]] = deque()  # with their numbers, the oldest first
        self._number = 0
        context = multiprocessing.get_context()
        self._spawned = context.get_start_method() != "fork"
        try:
            slots = Slots(EACH * workers + 1, shape)  # all that are asked for, and the one that is copied meanwhile
            try:
                for _ in range(workers):
                    mine, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(view, slots, theirs), daemon=True)
                    with theirs:
                        process.start()
                    self._processes.append((process, mine))
            finally:
                slots.close()
        except (OSError, RuntimeError) as error:
            self.close()
            if "bootstrapping phase" in str(error):  # multiprocessing's words in a process that imports the script
                raise InputStopped(GUARD) from error
            if isinstance(error, RuntimeError):
                raise
            raise InputStopped(f"{workers} worker processes cannot be started: {shortage(error)}; {FEWER}") from error
        self._batches = slots.batches

    @property
    def idle(self) -> bool:
        """Whether a request is still to be made before the next images are taken."""
        return len(self._asked) < EACH * len(self._processes)

    def ask(self, request: Request) -> None:
        """Hand the request to the process whose turn it is."""
        process, pipe = self._processes[self._number % len(self._processes)]
        self._asked.append((self._number, request))
        try:
            pipe.send((self._number % len(self._batches), request))
        except OSError as error:
            raise self._end_of(process) from error
        self._number += 1

    def take(self) -> tuple[Request, np.ndarray] | None:
        """The oldest request and its images, uint8 (N, S, S, 3), which stay until the next call; None if all are taken.

        Raises DataError, which names the file, for an image that cannot be decoded, InputStopped for a process that ended.
        """
        if not self._asked:
            return None
        number, request = self._asked[0]
        process, pipe = self._processes[number % len(self._processes)]
        try:
            while not pipe.poll(LOOK):
                if not process.is_alive() and not pipe.poll():
                    raise EOFError
            answer: Answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise self._end_of(process) from error
        if answer is not None:
            raise answer
        self._asked.popleft()
        self._spawned = False  # they have started well
        return request, self._batches[number % len(self._batches)]["images"][: len(request.paths)]

    def _end_of(self, process: BaseProcess) -> InputStopped:
        """Why the process ended, in one line."""
        process.join(LOOK)
        status = process.exitcode
        if status is not None and status < 0:
            number, request = next(
                asked for asked in self._asked if self._processes[asked[0] % len(self._processes)][0] is process
            )
            path = request.paths[int(self._batches[number % len(self._batches)]["at"])]
            name = signal.Signals(-status).name
            if -status == signal.SIGKILL:
                return InputStopped(f"{self.what} was killed ({name}), by the system for want of memory perhaps: {FEWER}")
            return InputStopped(f"{self.what} was ended by {name} at {path}: put that file right, or take it away")
        remedy = GUARD if self._spawned else "what it printed says why"
        return InputStopped(f"{self.what} ended with status {status}: {remedy}")

    def close(self) -> None:
        """End the processes; one that does not answer is left behind and ends with this one."""
        for process, pipe in self._processes:
            pipe.close()
            process.terminate()
        for process, _ in self._processes:
            process.join(GRACE)


def by_processes(view: View, requests: Iterable[Request], workers: int) -> Generator[tuple[Request, np.ndarray]]:
    """The requests, in their order, with their images, uint8 (N, S, S, 3), which stay until the next.

    The first request is the largest. Raises DataError and InputStopped as Pool does.
    """
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return
    requests = chain([first], requests)
    pool = Pool(view, (len(first.paths), view.size, view.size, 3), workers)
    try:
        while True:
            while pool.idle and (request := next(requests, None)) is not None:
                pool.ask(request)
            if (taken := pool.take()) is None:
                return
            yield taken
    finally:
        pool.close()


def _work(view: View, slots: Slots, pipe: Connection) -> None:
    """What a process does: it answers each (slot, request) when the slot is filled, until the other end is gone."""
    parent_process: Any = multiprocessing.parent_process()  # there is one: this is a child
    main = parent_process.pid
    for number in (signal.SIGINT, signal.SIGUSR1):  # the main process answers them, also where all processes of a job get them
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    Thread(target=_end_for, args=(main,), daemon=True).start()
    torch.set_num_threads(1)
    decode, parent = Decoder(view), os.getppid()
    try:
        while True:
            while not pipe.poll(GRACE):
                if os.getppid() != parent:  # another process may hold a copy of the other end
                    return
            slot, request = pipe.recv()
            pipe.send(decode(request, slots.batches[slot]))
    except (EOFError, ConnectionError):
        return


def _end_for(main: int) -> None:
    """SIGTERM ends a worker if it comes from the main process, which so ends one that hangs."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main:
        pass
    os._exit(0)

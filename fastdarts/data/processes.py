"""Decoding worker processes: requests go through pipes, images come back in shared memory.

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

EACH = 2  # outstanding requests per process
LOOK = 1.0  # seconds between liveness checks of the peer process
GRACE = 5.0  # seconds a process may take to end
GUARD = "a script that starts worker processes needs `if __name__ == '__main__':` around its main code"
FEWER = "use fewer --workers (0 decodes in a thread)"


class Slots:
    """Memory for `count` batches, shared with processes started while it is open.

    `batches` is an array of records: "images", uint8 (N, S, S, 3), and "at", the number of the image being decoded.
    The memory is anonymous: it uses no space in /dev/shm, often small in containers, and is freed with its last process.
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
        """Close the handle once all processes are started; the memory stays."""
        os.close(self._file)


class Pool:
    """Pool of W decoding processes, used round-robin. Must be closed."""

    def __init__(self, view: View, shape: tuple[int, ...], workers: int) -> None:
        """shape: of the largest batch, (N, S, S, 3). Raises InputStopped if a process or its memory cannot be created."""
        self.what = f"a process that decodes {view.stream.name.lower()} images"
        self._processes: list[tuple[BaseProcess, Connection]] = []
        self._asked: deque[tuple[int, Request]] = deque()  # (number, request), oldest first
        self._number = 0
        context = multiprocessing.get_context()
        self._spawned = context.get_start_method() != "fork"
        try:
            slots = Slots(EACH * workers + 1, shape)  # all outstanding requests, and the batch being copied
            try:
                for _ in range(workers):
                    connection, child = context.Pipe()
                    process = context.Process(target=_work, args=(view, slots, child), daemon=True)
                    with child:
                        process.start()
                    self._processes.append((process, connection))
            finally:
                slots.close()
        except (OSError, RuntimeError) as error:
            self.close()
            if "bootstrapping phase" in str(error):  # multiprocessing's message in a process that imports the script
                raise InputStopped(GUARD) from error
            if isinstance(error, RuntimeError):
                raise
            raise InputStopped(f"{workers} worker processes cannot be started: {shortage(error)}; {FEWER}") from error
        self._batches = slots.batches

    @property
    def idle(self) -> bool:
        """Return whether more requests are due before the next take()."""
        return len(self._asked) < EACH * len(self._processes)

    def ask(self, request: Request) -> None:
        """Send the request to the next process."""
        process, pipe = self._processes[self._number % len(self._processes)]
        self._asked.append((self._number, request))
        try:
            pipe.send((self._number % len(self._batches), request))
        except OSError as error:
            raise self._end_of(process) from error
        self._number += 1

    def take(self) -> tuple[Request, np.ndarray] | None:
        """Return the oldest request and its images, uint8 (N, S, S, 3), valid until the next call; None if all are taken.

        Raises DataError, which names the file, if an image cannot be decoded, and InputStopped if a process has ended.
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
        self._spawned = False  # all started successfully
        return request, self._batches[number % len(self._batches)]["images"][: len(request.paths)]

    def _end_of(self, process: BaseProcess) -> InputStopped:
        """Return why the process ended, in one line."""
        process.join(LOOK)
        status = process.exitcode
        if status is not None and status < 0:
            number, request = next(
                asked for asked in self._asked if self._processes[asked[0] % len(self._processes)][0] is process
            )
            path = request.paths[int(self._batches[number % len(self._batches)]["at"])]
            name = signal.Signals(-status).name
            if -status == signal.SIGKILL:
                return InputStopped(f"{self.what} was killed ({name}), possibly by the system because memory ran out: {FEWER}")
            return InputStopped(f"{self.what} crashed ({name}) on {path}: repair or remove that file")
        remedy = GUARD if self._spawned else "see its output for the reason"
        return InputStopped(f"{self.what} exited with status {status}: {remedy}")

    def close(self) -> None:
        """End the processes; an unresponsive one is abandoned and ends with this process."""
        for process, pipe in self._processes:
            pipe.close()
            process.terminate()
        for process, _ in self._processes:
            process.join(GRACE)


def by_processes(view: View, requests: Iterable[Request], workers: int) -> Generator[tuple[Request, np.ndarray]]:
    """Yield the requests, in order, with their images, uint8 (N, S, S, 3), which are valid until the next.

    The first request must be the largest. Raises DataError and InputStopped like Pool.
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
    """Worker process body: answer each (slot, request) once the slot is filled, until the peer is gone."""
    parent_process: Any = multiprocessing.parent_process()  # there is one: this is a child
    main = parent_process.pid
    for number in (signal.SIGINT, signal.SIGUSR1):  # handled by the main process, even if sent to all processes of a job
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    Thread(target=_end_for, args=(main,), daemon=True).start()
    torch.set_num_threads(1)
    decode, parent = Decoder(view), os.getppid()
    try:
        while True:
            while not pipe.poll(GRACE):
                if os.getppid() != parent:  # another process may hold a copy of the peer's end
                    return
            slot, request = pipe.recv()
            pipe.send(decode(request, slots.batches[slot]))
    except (EOFError, ConnectionError):
        return


def _end_for(main: int) -> None:
    """End a worker on SIGTERM if it comes from the main process, which ends hanging workers this way."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main:
        pass
    os._exit(0)

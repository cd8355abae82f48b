"""Prefetch batches in a thread, with a watchdog that names the stuck stage."""

import logging
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import NamedTuple, TypeVar

import torch

from fastdarts.batch import Batch
from fastdarts.data.errors import InputStopped

DEPTH = 2  # finished batches in the queue; one more is in progress
GRACE = 5.0  # seconds a thread may take to end
STALLED = 300.0  # seconds without a batch before input fails
SLOW = 60.0  # seconds before files checked or decoded ahead of a search are reported as not responding

T = TypeVar("T")
log = logging.getLogger(__name__)


class Activity:
    """Current activity of a producer, in words for the watchdog: `stage.now = "reading files"`."""

    now = "starting"


class _Made(NamedTuple):
    batch: Batch
    event: torch.cuda.Event | None  # on a GPU: when its tensors are there


def prefetched(batches: Iterator[Batch], device: torch.device, stage: Activity, timeout: float = STALLED) -> Generator[Batch]:
    """Yield the same batches, made DEPTH ahead of the consumer in a thread and moved to `device`.

    batches  iterated in that thread, on a separate CUDA stream if `device` is a GPU; their exceptions are raised here
    stage    current activity of `batches`
    timeout  seconds to wait for a batch before InputStopped is raised, naming the stage
    Closing the iterator ends the thread; a stuck thread is abandoned and ends with the process.
    """
    queue: Queue[_Made | Exception | None] = Queue(DEPTH)
    end = Event()
    thread = Thread(target=_fill, args=(batches, device, queue, end), name="fastdarts-input", daemon=True)
    thread.start()
    del batches  # drop the reference: it ends with the thread
    item: _Made | Exception | None = None
    try:
        while True:
            try:
                item = queue.get(timeout=timeout)
            except Empty:
                raise InputStopped(f"no input for {timeout:g} seconds, stuck at: {stage.now}") from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            if item.event is not None:
                stream = torch.cuda.current_stream(device)
                stream.wait_event(item.event)
                for tensor in item.batch:
                    tensor.record_stream(stream)
            yield item.batch
    finally:
        del item  # an error's traceback references this frame and the producer
        end.set()
        while not queue.empty():
            queue.get_nowait()
        thread.join(GRACE)


def awaited(future: Future[T], files: str) -> T:
    """Return the future's result; logs `files` every SLOW seconds while waiting for them."""
    seconds = 0.0
    while True:
        try:
            return future.result(SLOW)
        except TimeoutError:
            seconds += SLOW
            log.warning("nothing for %g seconds from %s; is the file system alive?", seconds, files)


def _fill(batches: Iterator[Batch], device: torch.device, queue: Queue, end: Event) -> None:
    """Thread body: fill the queue until `end` is set."""
    last: Exception | None = None
    try:
        with _stream(device) as stream:
            for batch in batches:
                event = None
                batch = batch.to(device)
                if stream is not None:
                    event = torch.cuda.Event()
                    event.record(stream)
                if not _put(queue, _Made(batch, event), end):
                    return
    except Exception as error:  # passed on to the consumer
        last = error
    _put(queue, last, end)
    del last  # its traceback references this frame


def _stream(device: torch.device) -> AbstractContextManager:
    """Make a new CUDA stream the current one of this thread; no-op on a CPU."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


def _put(queue: Queue, item: _Made | Exception | None, end: Event) -> bool:
    """Put the item; returns False if `end` is set first."""
    while not end.is_set():
        try:
            queue.put(item, timeout=0.1)
            return True
        except Full:
            continue
    return False

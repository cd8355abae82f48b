"""Batches made ahead of the step that takes them, in a thread, with a watchdog that names what is stuck."""

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

DEPTH = 2  # batches that wait for the consumer; one more is in the making
GRACE = 5.0  # seconds that a thread has to end
STALLED = 300.0  # seconds without a batch after which input is given up
SLOW = 60.0  # seconds after which files that are checked or decoded before a search are said not to answer

T = TypeVar("T")
log = logging.getLogger(__name__)


class Stage:
    """What a producer does now, in words for the watchdog: `stage.now = "reading files"`."""

    now = "starting"


class _Made(NamedTuple):
    batch: Batch
    event: torch.cuda.Event | None  # on a GPU: when its tensors are there


def ahead(batches: Iterator[Batch], device: torch.device, stage: Stage, timeout: float = STALLED) -> Generator[Batch]:
    """The same batches, made DEPTH ahead of the consumer in a thread and moved to `device`.

    batches  run in that thread, under a CUDA stream of its own where `device` is a GPU; what they raise is raised here
    stage    what `batches` say they are doing
    timeout  seconds to wait for a batch; then InputStopped is raised, which names the stage
    Closing the iterator ends the thread; one that is stuck is left behind and ends with the process.
    """
    queue: Queue[_Made | Exception | None] = Queue(DEPTH)
    end = Event()
    thread = Thread(target=_fill, args=(batches, device, queue, end), name="fastdarts-input", daemon=True)
    thread.start()
    del batches  # so that it ends with the thread
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
        del item  # an error's traceback holds this frame, and what made the batches
        end.set()
        while not queue.empty():
            queue.get_nowait()
        thread.join(GRACE)


def awaited(future: Future[T], files: str) -> T:
    """Its result, which comes from `files`; the log names them every SLOW seconds that it does not come."""
    seconds = 0.0
    while True:
        try:
            return future.result(SLOW)
        except TimeoutError:
            seconds += SLOW
            log.warning("nothing for %g seconds from %s; is the file system alive?", seconds, files)


def _fill(batches: Iterator[Batch], device: torch.device, queue: Queue, end: Event) -> None:
    """What the thread does; it waits for room in the queue, but not beyond the end."""
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
    except Exception as error:  # whatever it is, the consumer hears of it
        last = error
    _put(queue, last, end)
    del last  # its traceback holds this frame


def _stream(device: torch.device) -> AbstractContextManager:
    """A CUDA stream of the thread's own as the current one, or nothing on a CPU."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


def _put(queue: Queue, item: _Made | Exception | None, end: Event) -> bool:
    """Whether the item was put before the end."""
    while not end.is_set():
        try:
            queue.put(item, timeout=0.1)
            return True
        except Full:
            continue
    return False

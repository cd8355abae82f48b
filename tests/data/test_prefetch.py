"""Prefetched batches: order, errors, stuck and killed producers, cleanup."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
import torch

from fastdarts.batch import Batch
from fastdarts.data import CacheLayout, DataError, FolderLoader, ImageIndex, InputStopped, verify, workers
from fastdarts.data import prefetch as prefetch_module
from fastdarts.data.prefetch import DEPTH, Activity, prefetched
from fastdarts.ops.philox import Stream

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    index = torch.tensor([number])
    return Batch(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), index, index, index == 0)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fastdarts-input"]


def test_batches_come_in_order_to_the_end() -> None:
    assert [made.index.item() for made in prefetched(map(batch, range(20)), CPU, Activity())] == list(range(20))
    assert not threads()


def test_prefetch_depth_is_limited() -> None:
    """DEPTH wait, one is in the making, and one was handed out."""
    made: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(100):
            made.append(number)
            yield batch(number)

    iterator = prefetched(batches(), CPU, Activity())
    next(iterator)
    began = monotonic()
    while len(made) < DEPTH + 2 and monotonic() - began < 10:
        pass
    assert not threads()[0].join(0.3) and len(made) == DEPTH + 2
    iterator.close()
    assert not threads()


def test_error_follows_earlier_batches() -> None:
    def batches() -> Iterator[Batch]:
        yield batch(0)
        raise OSError("the disk is gone")

    iterator = prefetched(batches(), CPU, Activity())
    assert next(iterator).index.item() == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)
    assert not threads()


def test_stuck_stage_is_named_after_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "GRACE", 0.1)
    stage, release = Activity(), threading.Event()

    def batches() -> Iterator[Batch]:
        yield batch(0)
        stage.now = "reading a file that never comes"
        release.wait()
        yield batch(1)

    iterator = prefetched(batches(), CPU, stage, timeout=0.3)
    next(iterator)
    began = monotonic()
    try:
        with pytest.raises(InputStopped, match=r"no input for 0\.3 seconds, stuck at: reading a file that never comes"):
            next(iterator)
        assert monotonic() - began < 10
    finally:
        release.set()
    for thread in threads():
        thread.join(10)
    assert not threads()


def test_unresponsive_file_system_times_out(tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated by a pipe in a forked worker process, which inherits the patches."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def read(path: str) -> None:
        with open(pipe, "rb"):
            raise DataError("the file system is back, without its files")

    monkeypatch.setattr(prefetch_module, "GRACE", 0.1)
    monkeypatch.setattr(workers, "read_rgb", read)
    index = ImageIndex.from_root(tree(a=6))
    order = {"stream": Stream.TRAIN, "seed": 0, "batch_size": 6, "image_size": 16}
    with FolderLoader(index, torch.arange(6), workers=1, timeout=1.0, **order) as loader:
        with pytest.raises(InputStopped, match=r"stuck at: decoding train images in 1 worker processes"):
            next(loader)
        with open(pipe, "wb"):  # lets the worker go
            pipe.unlink()
    for thread in threads():
        thread.join(10)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("stage", ["check", "cache"])
def test_unresponsive_files_before_search_are_logged(
    stage: str, tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index, release = ImageIndex.from_root(tree(a=6)), threading.Event()
    good, sizes, _ = verify(index, torch.arange(6), 1)
    layout = CacheLayout.of(index, good, sizes, 24)

    def slow(*args: object) -> object:
        release.wait(20)
        return (3, 4) if stage == "check" else np.zeros(3, np.uint8)

    monkeypatch.setattr(prefetch_module, "SLOW", 0.1)
    monkeypatch.setattr(sys.modules[verify.__module__], "examine", slow)
    monkeypatch.setattr(CacheLayout, "_decode", slow)
    run = {"check": lambda: verify(index, good, 1), "cache": lambda: layout.fill(torch.zeros(18), 1, lambda *_: None)}[stage]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        began = monotonic()
        while "0.2 seconds" not in caplog.text and monotonic() - began < 10:
            sleep(0.01)
        release.set()
        running.exception(20)
    assert "nothing for 0.2 seconds from" in caplog.text
    assert f"{index.path(0)} to {index.path(5)}; is the file system alive?" in caplog.text


def test_killed_worker_is_reported_and_loader_continues(tree: Callable[..., Path]) -> None:
    index = ImageIndex.from_root(tree(a=6))
    order = {"stream": Stream.TRAIN, "seed": 0, "batch_size": 6, "image_size": 16}
    whole = FolderLoader(index, torch.arange(6), workers=0, **order)
    with FolderLoader(index, torch.arange(6), workers=1, **order) as loader:
        expected = next(whole)
        assert next(loader).images.equal(expected.images)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        taken = []
        with pytest.raises(InputStopped, match=r"a process that decodes train images was killed \(SIGKILL\)"):
            taken.extend(islice(loader, 50))
        taken.append(next(loader))  # the batch that failed
        assert all(next(whole).images.equal(batch.images) for batch in taken)
    assert not multiprocessing.active_children()


def test_workers_ignore_signals(tree: Callable[..., Path]) -> None:
    """A launcher's SIGTERM to all processes of a job: batches go on, until the main process itself ends its workers."""
    index = ImageIndex.from_root(tree(a=6))
    order = {"stream": Stream.TRAIN, "seed": 0, "batch_size": 6, "image_size": 16}
    with FolderLoader(index, torch.arange(6), workers=1, **order) as loader:
        next(loader)
        (worker,) = multiprocessing.active_children()
        for name in ("TERM", "INT", "USR1"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        for _ in range(2 * DEPTH + 10):
            next(loader)
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(10)
        assert not worker.is_alive()


def test_interrupted_batch_is_returned_by_next_call(tree: Callable[..., Path]) -> None:
    index = ImageIndex.from_root(tree(a=6))
    order = {"stream": Stream.TRAIN, "seed": 0, "batch_size": 3, "image_size": 16}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def slow(*_: object) -> Iterator[Batch]:
        sleep(0.5)
        yield from ()

    with FolderLoader(index, torch.arange(6), workers=0, **order) as loader:
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FolderLoader, "_produce", slow)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(KeyboardInterrupt):
                    next(loader)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert next(loader).index.equal(loader.sampler.batch(0)[1])
    assert not threads()


def test_unreferenced_iterator_ends_its_thread() -> None:
    iterator = prefetched(map(batch, range(10**6)), CPU, Activity())
    next(iterator)
    assert threads()
    del iterator
    gc.collect()
    assert not threads()

"""Worker processes: system resources, messages about missing ones, termination."""

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdarts.data import FolderLoader, ImageIndex, InputStopped, processes, verify, workers
from fastdarts.ops.philox import Stream

Tree = Callable[..., Path]


def loader(index: ImageIndex, workers: int = 1) -> FolderLoader:
    return FolderLoader(
        index, torch.arange(len(index)), stream=Stream.TRAIN, seed=3, batch_size=3, image_size=16, workers=workers
    )


def test_images_do_not_use_dev_shm(tree: Tree) -> None:
    with loader(ImageIndex.from_root(tree(a=6))) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        for process in (os.getpid(), worker.pid):
            maps = Path(f"/proc/{process}/maps").read_text()
            assert "fastdarts-batches" in maps and "/dev/shm" not in maps


@pytest.mark.parametrize("count", [1, 3])
def test_batches_come_in_order_as_copies(tree: Tree, count: int) -> None:
    """Slots are used again and again; a batch is a copy."""
    index = ImageIndex.from_root(tree(a=7, b=8))
    whole = loader(index, 0)
    with loader(index, count) as batches:
        taken = [next(batches) for _ in range(12)]
    for batch in taken:
        assert all(map(torch.equal, batch, next(whole)))


def test_memory_is_shared_with_started_process() -> None:
    """Where processes are spawned it travels by its descriptor."""
    slots = processes.Slots(2, (3, 4, 4, 3))
    other = ForkingPickler.loads(ForkingPickler.dumps(slots))
    resource_sharer.stop()
    slots.close()
    other.close()
    slots.batches[1]["images"][2] = 7
    slots.batches[1]["at"] = 2
    assert not other.batches[0]["images"].any() and other.batches[1]["images"][2].min() == 7 and other.batches[1]["at"] == 2


def test_script_without_main_guard_gets_message(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that imports the script again, and in the one that started it."""
    index = ImageIndex.from_root(tree(a=6))
    monkeypatch.setattr(multiprocessing, "get_context", lambda: multiprocessing.context.SpawnContext())
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
        with pytest.raises(InputStopped, match=r"^a script that .* `if __name__ == '__main__':`"):
            next(loader(index))
    fork = multiprocessing.context.ForkContext()
    monkeypatch.setattr(fork, "get_start_method", lambda: "spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda: fork)
    monkeypatch.setattr(processes, "_work", lambda *_: os._exit(1))
    with pytest.raises(InputStopped, match=r"exited with status 1: a script that .* `if __name__ == '__main__':`"):
        next(loader(index))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL])
def test_crashed_process_is_named_with_file(tree: Tree, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    index = ImageIndex.from_root(tree(a=3))
    plain = workers.read_rgb

    def read(path: str) -> Any:
        if path == index.path(1):
            os.kill(os.getpid(), number)
        return plain(path)

    monkeypatch.setattr(workers, "read_rgb", read)
    with pytest.raises(InputStopped) as caught:
        next(loader(index))
    said = str(caught.value)
    assert signal.Signals(number).name in said and "\n" not in said
    assert ("memory ran out" in said and "--workers" in said) if number == signal.SIGKILL else index.path(1) in said
    assert not multiprocessing.active_children()


def test_too_many_open_files_is_reported(tree: Tree) -> None:
    """Processes do not start; files are not taken for broken ones, in a process and in a thread, and before a search."""
    index = ImageIndex.from_root(tree(a=6))
    batches = loader(index), loader(index, 0)
    next(loader(index, 0))  # whatever is imported meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        for attempt in (lambda: next(batches[0]), lambda: next(batches[1]), lambda: verify(index, torch.arange(6), 1)):
            with pytest.raises(InputStopped, match="Too many open files: raise `ulimit -n`"):
                attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert next(batches[0]).images.equal(next(batches[1]).images)
    batches[0].close()


@pytest.mark.parametrize(("number", "says"), [(errno.EAGAIN, "ulimit -u"), (errno.ENOMEM, "memory")])
def test_failed_process_start_ends_started_ones(tree: Tree, monkeypatch: pytest.MonkeyPatch, number: int, says: str) -> None:
    """The ones that were started before it are ended."""
    start, started = multiprocessing.process.BaseProcess.start, []

    def second(process: Any) -> None:
        if started:
            raise OSError(number, os.strerror(number))
        started.append(start(process))

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", second)
    with pytest.raises(InputStopped, match=f"^2 worker processes cannot be started: .*{says}.*; use fewer --workers"):
        next(loader(ImageIndex.from_root(tree(a=6)), 2))
    assert started and not multiprocessing.active_children()

"""Decode every file once before a search, so that a bad one is named then and not hours later."""

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from fastdarts.data.decode import examine, header_size, pillow_warnings
from fastdarts.data.errors import DataError
from fastdarts.data.index import ImageIndex
from fastdarts.data.prefetch import awaited
from fastdarts.data.verified_store import Known, Remembered
from fastdarts.quoting import quoted

CHUNK = 64  # files a thread takes at a time
AHEAD = 4  # chunks a thread that wait for it
RECENT_NS = 2 * 10**9  # a file may change within its clock's tick and keep its time: the coarsest ticks are two seconds

Examine = Callable[[str], tuple[int, int] | str]  # path -> (height, width), or what is wrong


class Verified(NamedTuple):
    """What a check found.

    good   int64 (G,), the images that decode, in the order given
    sizes  int32 (G, 2), height and width of each as it decodes: no EXIF orientation is applied
    bad    (name relative to the index' root, reason) of the others
    """

    good: Tensor
    sizes: Tensor
    bad: list[tuple[str, str]]


class _Answer(NamedTuple):
    """Of one file: (height, width) or what is wrong, whether that was remembered, what to remember if it was decoded."""

    size: tuple[int, int] | str
    used: bool
    fresh: Known | None


def verify(
    index: ImageIndex,
    indices: Tensor,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    remembered: Remembered | None = None,
) -> Verified:
    """Open and decode the files of `indices` to their ends, in `workers` threads (Pillow decodes outside the GIL).

    indices     int64 (N,)
    progress    called now and then with (files done, N)
    remembered  files that are as they were when it found them good are not opened; what is found good now is added
    A file that is empty, no image, truncated, gone, a broken link, may not be read, or is no file at all is bad.
    A JPEG that lacks nothing but its end marker may count as good: all its pixels are there.
    """
    sizes: list[tuple[int, int] | str] = []
    with closing(_answers(index, indices, workers, examine, remembered)) as answers:
        for path, answer in answers:
            sizes.append(answer.size)
            if remembered is not None:
                remembered.used += answer.used
                if answer.fresh is not None:
                    remembered.add(path, answer.fresh)
            if progress is not None and (len(sizes) % CHUNK == 0 or len(sizes) == len(indices)):
                progress(len(sizes), len(indices))
    good = torch.tensor([not isinstance(size, str) for size in sizes], dtype=torch.bool)
    bad = [(index.files[i], size) for i, size in zip(indices.tolist(), sizes, strict=True) if isinstance(size, str)]
    return Verified(indices[good], _tensor([size for size in sizes if not isinstance(size, str)]), bad)


def image_sizes(index: ImageIndex, indices: Tensor, workers: int, remembered: Remembered | None = None) -> Tensor:
    """Height and width of images that were verified before, int32 (N, 2), without decoding any.

    From `remembered` where a file is as it was then, else from its header, which tells nothing of what follows it.
    Raises DataError, which names the first file that has no header to read.
    """
    sizes = []
    with closing(_answers(index, indices, workers, header_size, remembered)) as answers:
        for path, answer in answers:
            if isinstance(answer.size, str):
                raise DataError(f"cannot decode {quoted(os.fsdecode(path))}: {answer.size}")
            sizes.append(answer.size)
    return _tensor(sizes)


def _tensor(sizes: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2)


def _answers(
    index: ImageIndex, indices: Tensor, workers: int, look: Examine, remembered: Remembered | None
) -> Generator[tuple[bytes, _Answer]]:
    """(absolute path, answer) of each image, in order."""
    root = os.path.realpath(index.root)  # one name for a folder, however it is reached
    waiting: deque[tuple[list[bytes], Future[list[_Answer]]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers))
    end = Event()
    try:
        with pillow_warnings():
            for chunk in indices.split(CHUNK):
                paths = [os.fsencode(os.path.join(root, index.files[i])) for i in chunk.tolist()]
                known = remembered.look_up(paths) if remembered is not None else {}
                waiting.append((paths, pool.submit(_chunk, paths, known, look, end)))
                if len(waiting) > AHEAD * max(1, workers):
                    yield from _next(*waiting.popleft())
            for paths, answers in waiting:
                yield from _next(paths, answers)
    finally:
        end.set()
        pool.shutdown(cancel_futures=True)


def _next(paths: list[bytes], answers: Future[list[_Answer]]) -> Iterator[tuple[bytes, _Answer]]:
    files = " to ".join(quoted(os.fsdecode(path)) for path in paths[:1] + paths[-1:])
    return zip(paths, awaited(answers, files), strict=True)


def _chunk(paths: list[bytes], known: dict[bytes, Known], look: Examine, end: Event) -> list[_Answer]:
    """The answers; after the end nobody waits for them."""
    return [_answer(os.fsdecode(path), known.get(path), look) for path in paths if not end.is_set()]


def _answer(path: str, known: Known | None, look: Examine) -> _Answer:
    """Look at a file unless it is as `known` says and may be read."""
    try:
        now = os.stat(path)  # before the file is read: if it changes meanwhile, what is remembered fits no more
    except OSError:
        return _Answer(look(path), False, None)
    unchanged = known is not None and (known.size, known.mtime_ns) == (now.st_size, now.st_mtime_ns)
    if known is not None and unchanged and stat.S_ISREG(now.st_mode) and _readable(path):
        return _Answer((known.height, known.width), True, None)
    recent = abs(time.time_ns() - now.st_mtime_ns) < RECENT_NS
    size = look(path)
    if isinstance(size, str) or recent:
        return _Answer(size, False, None)
    return _Answer(size, False, Known(now.st_size, now.st_mtime_ns, *size))


def _readable(path: str) -> bool:
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)

"""Decode every file once before a search, so that bad files are reported at once and not hours later."""

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
from fastdarts.data.verified_store import Known, VerifiedStore
from fastdarts.quoting import quoted

CHUNK = 64  # files per task
AHEAD = 4  # queued chunks per thread
RECENT_NS = 2 * 10**9  # a file may change within one clock tick and keep its time: the coarsest ticks take 2 s

Examine = Callable[[str], tuple[int, int] | str]  # path -> (height, width), or the fault


class Verified(NamedTuple):
    """Result of a verification.

    good   int64 (G,), the images that decode, in the given order
    sizes  int32 (G, 2), decoded height and width of each, without EXIF orientation
    bad    (name relative to the index root, reason) of the others
    """

    good: Tensor
    sizes: Tensor
    bad: list[tuple[str, str]]


class _Answer(NamedTuple):
    """Answer for one file: (height, width) or the fault, whether the store knew it, the entry to store if it was decoded."""

    size: tuple[int, int] | str
    used: bool
    fresh: Known | None


def verify(
    index: ImageIndex,
    indices: Tensor,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    store: VerifiedStore | None = None,
) -> Verified:
    """Open and fully decode the files of `indices`, in `workers` threads (Pillow releases the GIL).

    indices     int64 (N,)
    progress    called from time to time with (files done, N)
    store     store of verified files: unchanged ones are not opened, newly verified ones are added
    A file is bad if it is empty, not an image, truncated, gone, a broken link, unreadable, or not a regular file.
    A JPEG without only its end marker may count as good: all its pixels are present.
    """
    sizes: list[tuple[int, int] | str] = []
    with closing(_answers(index, indices, workers, examine, store)) as answers:
        for path, answer in answers:
            sizes.append(answer.size)
            if store is not None:
                store.used += answer.used
                if answer.fresh is not None:
                    store.add(path, answer.fresh)
            if progress is not None and (len(sizes) % CHUNK == 0 or len(sizes) == len(indices)):
                progress(len(sizes), len(indices))
    good = torch.tensor([not isinstance(size, str) for size in sizes], dtype=torch.bool)
    bad = [(index.files[i], size) for i, size in zip(indices.tolist(), sizes, strict=True) if isinstance(size, str)]
    return Verified(indices[good], _tensor([size for size in sizes if not isinstance(size, str)]), bad)


def image_sizes(index: ImageIndex, indices: Tensor, workers: int, store: VerifiedStore | None = None) -> Tensor:
    """Return height and width of previously verified images, int32 (N, 2), without decoding.

    Taken from `store` if a file is unchanged, else from its header, which does not validate the image data.
    Raises DataError, which names the first file without a readable header.
    """
    sizes = []
    with closing(_answers(index, indices, workers, header_size, store)) as answers:
        for path, answer in answers:
            if isinstance(answer.size, str):
                raise DataError(f"cannot decode {quoted(path)}: {answer.size}")
            sizes.append(answer.size)
    return _tensor(sizes)


def _tensor(sizes: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2)


def _answers(
    index: ImageIndex, indices: Tensor, workers: int, look: Examine, store: VerifiedStore | None
) -> Generator[tuple[str, _Answer]]:
    """Yield (absolute path, answer) for each image, in order."""
    root = os.path.realpath(index.root)  # canonical name of the folder
    known = store.known if store is not None else {}
    waiting: deque[tuple[list[str], Future[list[_Answer]]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers))
    end = Event()
    try:
        with pillow_warnings():
            for chunk in indices.split(CHUNK):
                paths = [os.path.join(root, index.files[i]) for i in chunk.tolist()]
                waiting.append((paths, pool.submit(_chunk, paths, known, look, end)))
                if len(waiting) > AHEAD * max(1, workers):
                    yield from _next(*waiting.popleft())
            for paths, answers in waiting:
                yield from _next(paths, answers)
    finally:
        end.set()
        pool.shutdown(cancel_futures=True)


def _next(paths: list[str], answers: Future[list[_Answer]]) -> Iterator[tuple[str, _Answer]]:
    files = " to ".join(quoted(path) for path in paths[:1] + paths[-1:])
    return zip(paths, awaited(answers, files), strict=True)


def _chunk(paths: list[str], known: dict[str, Known], look: Examine, end: Event) -> list[_Answer]:
    """Return the answers of a chunk; stops early once `end` is set."""
    return [_answer(path, known.get(path), look) for path in paths if not end.is_set()]


def _answer(path: str, known: Known | None, look: Examine) -> _Answer:
    """Examine a file unless it is readable and unchanged from `known`."""
    try:
        now = os.stat(path)  # before reading: a change meanwhile invalidates the stored entry
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

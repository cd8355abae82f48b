"""Memory-mapped file of decoded images: complete, or absent."""

import errno
import fcntl
import logging
import mmap
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TextIO

import torch
from torch import Tensor

from fastdarts.data.errors import DataError

TRAILER = "\nfastdarts cache {key}\n"  # follows the pixels, written last

log = logging.getLogger(__name__)


def open_file(folder: Path, key: str, size: int) -> Tensor | None:
    """Return the memory-mapped pixels, uint8 (size,), or None without a complete file of this key."""
    path, trailer = _path(folder, key), TRAILER.format(key=key).encode()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size + len(trailer):
                return None
            file.seek(size)
            if file.read() != trailer:
                return None
            return _mapped(file, size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"cannot read the cache {path}: {error.strerror}; choose another --cache_folder or --cache off"
        ) from error


def _mapped(file: BinaryIO, size: int) -> Tensor:
    """Map the first `size` bytes read-only: a writable private mapping would have to fit into RAM."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), dtype=torch.uint8)


def room_taken(folder: Path, key: str) -> int:
    """Return the disk bytes that the file of this key, complete or unfinished, already occupies."""
    path = _path(folder, key)
    return max((p.stat().st_size for p in (path, path.with_suffix(".part")) if p.exists()), default=0)


def write_file(folder: Path, key: str, size: int, fill: Callable[[Tensor], None]) -> None:
    """Let `fill` write the pixels, uint8 (size,), of a new file, unless another process writes it meanwhile.

    Disk space is allocated before the first pixel, and the file gets its name once it is flushed to disk. Raises DataError
    if the folder is not writable or has no space; the message gives the figures.
    """
    path, trailer = _path(folder, key), TRAILER.format(key=key).encode()
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            _wait_for(lock, path)
            if open_file(folder, key, size) is None:
                try:
                    _write(part, size, trailer, fill)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            why = f"it needs {size / 2**30:.2f} GiB, more than the disk has free"
        raise DataError(f"cannot write the cache {path}: {why}; choose another --cache_folder or --cache off") from error


def _wait_for(lock: TextIO, path: Path) -> None:
    """Wait until no other process writes the same file."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that writes the cache %s", path)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _write(part: Path, size: int, trailer: bytes, fill: Callable[[Tensor], None]) -> None:
    with open(part, "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, size + len(trailer))
        fill(torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8))  # torch.from_file requires a UTF-8 name
        file.seek(size)
        file.write(trailer)
        file.flush()
        os.fsync(file.fileno())


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key[:24]}.pixels"

"""A file of decoded images that is mapped into memory: whole, or not there."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastdarts.data.errors import DataError

TRAILER = "\nfastdarts cache {key}\n"  # after the pixels: written last


def open_file(folder: Path, key: str, size: int) -> Tensor | None:
    """The pixels, uint8 (size,), memory-mapped, or None if there is no whole file of this key."""
    path, trailer = _path(folder, key), TRAILER.format(key=key).encode()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size + len(trailer):
                return None
            file.seek(size)
            if file.read() != trailer:
                return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"cannot read the cache {path}: {error.strerror}; choose another --cache_folder or --cache off"
        ) from error
    return torch.from_file(os.fspath(path), shared=False, size=size, dtype=torch.uint8)  # opened for reading only


def room_taken(folder: Path, key: str) -> int:
    """Bytes of the disk that the file of this key, whole or left unfinished, has already."""
    path = _path(folder, key)
    return max((p.stat().st_size for p in (path, path.with_suffix(".part")) if p.exists()), default=0)


def write_file(folder: Path, key: str, size: int, fill: Callable[[Tensor], None]) -> None:
    """Have `fill` write the pixels, uint8 (size,), of a new file, unless another process does so meanwhile.

    The room is taken before the first pixel, and the file gets its name when all of it is on the disk. Raises DataError for
    a folder that cannot be written or has no room, with figures.
    """
    path, trailer = _path(folder, key), TRAILER.format(key=key).encode()
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be writing the same
            if open_file(folder, key, size) is None:
                try:
                    _write(part, size, trailer, fill)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            why = f"it takes {size / 2**30:.2f} GiB, too much for the disk"
        raise DataError(f"cannot write the cache {path}: {why}; choose another --cache_folder or --cache off") from error


def _write(part: Path, size: int, trailer: bytes, fill: Callable[[Tensor], None]) -> None:
    with open(part, "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, size + len(trailer))
        fill(torch.from_file(os.fspath(part), shared=True, size=size, dtype=torch.uint8))
        file.seek(size)
        file.write(trailer)
        file.flush()
        os.fsync(file.fileno())


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key[:24]}.pixels"

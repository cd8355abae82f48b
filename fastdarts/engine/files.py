"""Atomic file replacement: after a crash a file is either the old or the new one."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file next to `path`, flush it to disk and rename it to `path`.

    On return the new file is on disk under its name; until then the old one is.
    """
    with written_beside(path, write) as temporary:
        os.replace(temporary, path)
        flush_folder(path.parent)


@contextmanager
def written_beside(path: Path, write: Callable[[BinaryIO], object]) -> Generator[Path]:
    """Context manager: yields a temporary file next to `path`, written and flushed, to be renamed; removes it otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


@contextmanager
def named_plainly(folder: Path) -> Generator[Path]:
    """Context manager: yields a path to the existing `folder` without non-UTF-8 bytes and line breaks, for strict libraries."""
    if str(folder).isprintable():
        yield folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


def flush(path: Path) -> None:
    """Flush the content of a file to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Flush the entries of a folder to disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

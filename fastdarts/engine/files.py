"""Files that are either the old one or the new one, whatever happens meanwhile."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk and put it in the place of `path`.

    When this returns the new file is on the disk under its name; until then the old one is.
    """
    with written_beside(path, write) as temporary:
        os.replace(temporary, path)
        flush_folder(path.parent)


@contextmanager
def written_beside(path: Path, write: Callable[[BinaryIO], object]) -> Generator[Path]:
    """Inside, what `write` wrote lies on the disk in a temporary file beside `path`, to be moved; else it is removed."""
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
    """Inside, a path to `folder`, which is there, for libraries that take neither bytes that are no UTF-8 nor line breaks."""
    if str(folder).isprintable():
        yield folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


def flush(path: Path) -> None:
    """What was written to the file reaches the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """The names of a folder reach the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

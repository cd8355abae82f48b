"""Store of files verified before, so that a second search does not open them again.

A JSON list on a line for each file: absolute path, bytes, modification time in ns, height, width. The last line of a path
counts; a file of another size or time is verified again. Only good files are stored: a bad one may be repaired later.
Processes append whole lines at once, without a lock. Damaged lines, as a full disk leaves them, are skipped.
"""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from fastdarts.data.errors import DataError
from fastdarts.data.user_cache import user_cache

NAME = "verified.1.jsonl"  # the number is that of the lines' content and of the definition of "good"
BATCH = 2000  # lines per write

log = logging.getLogger(__name__)


class Known(NamedTuple):
    """State of a file when it was verified: bytes, modification time in ns; height and width of the image."""

    size: int
    mtime_ns: int
    height: int
    width: int


class VerifiedStore:
    """Store of verified files, read when it is opened. An error of the store is logged in one line and never raises.

    known  files stored before, by absolute path
    used   files that verify() accepted without opening them
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """path: file, created if missing; by default verified.1.jsonl in the user's cache folder."""
        self.path: Path | None = None
        self.known: dict[str, Known] = {}
        self.used = 0
        self._fresh: list[str] = []
        try:
            self.path = Path(path) if path is not None else user_cache() / NAME
            if self.path.exists():
                self._read(self.path)
        except (OSError, DataError) as error:
            self._fail(error)

    def add(self, path: str, known: Known) -> None:
        """Add a good file; writes are batched and completed by close()."""
        self._fresh.append(_line(path, known))
        if len(self._fresh) >= BATCH:
            self._write()

    def close(self) -> None:
        """Write the remaining lines."""
        self._write()

    def __enter__(self) -> "VerifiedStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, path: Path) -> None:
        """Read the file; rebuild it if most of its lines are damaged or outdated."""
        lines = 0
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                lines += line != "\n"
                if (found := _parsed(line)) is not None:
                    self.known[found[0]] = found[1]
        if 2 * len(self.known) < lines:
            log.info(f"{path} is rebuilt: {lines - len(self.known)} of {lines} lines are damaged or outdated")
            rebuilt = path.with_name(f"{path.name}.{os.getpid()}")
            try:
                rebuilt.write_text("".join(_line(*item) for item in self.known.items()), encoding="ascii")
                rebuilt.replace(path)
            finally:
                rebuilt.unlink(missing_ok=True)

    def _write(self) -> None:
        lines, self._fresh = self._fresh, []
        if self.path is None or not lines:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                file.write("".join(["\n", *lines]).encode("ascii"))  # the first break ends a line that another write left
        except OSError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Log the error and stop writing."""
        where = f"{self.path}: " if self.path is not None else ""
        log.warning(f"verified files are not stored: {where}{getattr(error, 'strerror', error)}")
        self.path = None


def _line(path: str, known: Known) -> str:
    return json.dumps([path, *known]) + "\n"


def _parsed(line: str) -> tuple[str, Known] | None:
    """Return the entry of a line, None for a damaged one."""
    try:
        path, *numbers = json.loads(line)
        if isinstance(path, str) and all(type(number) is int for number in numbers):
            return path, Known(*numbers)
    except (ValueError, TypeError, RecursionError):
        pass
    return None

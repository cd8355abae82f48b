"""SQLite store of files verified before, so that a second search does not open them again.

The key of a file is its path, size and modification time; a changed file is verified again. Only good files are stored:
a bad one may be repaired later. An unusable store is logged in one line and skipped.
"""

import fcntl
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        import sqlite3
    except ImportError:  # a Python built without sqlite3
        sqlite3 = None

from fastdarts.data.errors import DataError
from fastdarts.data.user_cache import user_cache

NAME = "verified.sqlite3"
VERSION = 1  # of the table and of the definition of "good": other versions are emptied
TABLE = """CREATE TABLE images (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL
) WITHOUT ROWID"""
BATCH = 2000  # rows per write
BUSY_SECONDS = 10.0  # to wait for another writer

log = logging.getLogger(__name__)


class Known(NamedTuple):
    """State of a file when it was verified: bytes, modification time in ns; height and width of the image."""

    size: int
    mtime_ns: int
    height: int
    width: int


class Remembered:
    """Store of verified files. Safe for concurrent processes; an object belongs to one thread. Store errors never raise."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """path: SQLite file, created if missing; by default verified.sqlite3 in the user's cache folder."""
        self.path = Path(path) if path is not None else None
        self.used = 0  # files that verify() accepted without opening them
        self._db: sqlite3.Connection | None = None
        self._fresh: list[tuple[bytes, Known]] = []
        if sqlite3 is None:
            log.warning("checked files are not remembered: this Python has no sqlite3")
            return
        try:
            self.path = self.path or user_cache() / NAME
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _connect(self.path)
        except (OSError, DataError, sqlite3.Error) as error:
            self._fail(error)

    def look_up(self, paths: Sequence[bytes]) -> dict[bytes, Known]:
        """Look up the paths (absolute, from os.fsencode), at most 999 at a time."""
        if self._db is None:
            return {}
        wanted = f"SELECT path, size, mtime_ns, height, width FROM images WHERE path IN ({','.join('?' * len(paths))})"
        try:
            return {path: Known(*row) for path, *row in self._db.execute(wanted, paths)}
        except sqlite3.Error as error:
            self._fail(error)
            return {}

    def add(self, path: bytes, known: Known) -> None:
        """Add a good file; writes are batched and completed by close()."""
        self._fresh.append((path, known))
        if len(self._fresh) >= BATCH:
            self._write()

    def close(self) -> None:
        """Write the remaining rows."""
        self._write()
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> "Remembered":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> None:
        rows, self._fresh = self._fresh, []
        if self._db is None or not rows:
            return
        try:
            with self._db:  # commits or rolls back
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?)", [(path, *known) for path, known in rows])
        except sqlite3.Error as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Continue without the store; a damaged one is renamed, so that the next search creates a new one."""
        if self._db is not None:
            self._db.close()
            self._db = None
        where = f"{self.path}: " if self.path is not None else ""
        done = f"; {_set_aside(self.path)}" if self.path is not None and _damaged(error) else ""
        log.warning(f"checked files are not remembered: {where}{error}{done}")


def _connect(path: Path) -> "sqlite3.Connection":
    """Open the store at `path` and create its table. Raises sqlite3.Error."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        if _version(db) != VERSION:
            with db:
                db.execute("BEGIN IMMEDIATE")
                if _version(db) != VERSION:  # not created meanwhile by another process
                    db.execute("DROP TABLE IF EXISTS images")
                    db.execute(TABLE)
                    db.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _version(db: "sqlite3.Connection") -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _damaged(error: Exception) -> bool:
    """Return whether the file's content is at fault, rather than a lock, a full disk or a permission."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # lowest byte: primary code
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _set_aside(path: Path) -> str:
    """Rename a damaged store and return a description. The lock protects a new store of another process."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        with open(path.with_name(f"{path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _sound(path):
                path.replace(aside)
                path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    except OSError as error:
        return f"take it away yourself ({error.strerror})"
    return f"moved to {aside.name}, the next search begins a new one"


def _sound(path: Path) -> bool:
    try:
        db = _connect(path)
        try:
            return db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        finally:
            db.close()
    except sqlite3.Error:
        return False

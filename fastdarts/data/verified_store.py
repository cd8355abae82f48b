"""Files that were found good before, in an SQLite file, so that a second search opens none of them again.

A file is known by its path, size and time of change; what is not as it was is looked at again. Only good files are kept:
a bad one may have been mended since. A store that cannot be used is said in one line and done without.
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
    except ImportError:  # a Python that was built without it
        sqlite3 = None

from fastdarts.data.errors import DataError
from fastdarts.data.user_cache import user_cache

NAME = "verified.sqlite3"
VERSION = 1  # of the table and of what "good" means: a store of another one is emptied
TABLE = """CREATE TABLE images (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL
) WITHOUT ROWID"""
BATCH = 2000  # rows written at a time
BUSY_SECONDS = 10.0  # to wait for another process that writes

log = logging.getLogger(__name__)


class Known(NamedTuple):
    """A file as it was when its image was found good: bytes, time of change in ns; the image's height and width."""

    size: int
    mtime_ns: int
    height: int
    width: int


class Remembered:
    """The store. Several processes may use it at once; an object belongs to one thread. No method raises for its sake."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """path  of the SQLite file, made where missing; by default verified.sqlite3 in the user's cache folder."""
        self.path = Path(path) if path is not None else None
        self.used = 0  # files that verify() took for good without opening them
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
        """What is known of these paths (absolute, as os.fsencode gives them), at most 999 at a time."""
        if self._db is None:
            return {}
        wanted = f"SELECT path, size, mtime_ns, height, width FROM images WHERE path IN ({','.join('?' * len(paths))})"
        try:
            return {path: Known(*row) for path, *row in self._db.execute(wanted, paths)}
        except sqlite3.Error as error:
            self._fail(error)
            return {}

    def add(self, path: bytes, known: Known) -> None:
        """Remember a good file; written now and then, and at the end."""
        self._fresh.append((path, known))
        if len(self._fresh) >= BATCH:
            self._write()

    def close(self) -> None:
        """Write what is left."""
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
            with self._db:  # commits, or rolls back
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?)", [(path, *known) for path, known in rows])
        except sqlite3.Error as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Go on without the store; a damaged one is moved away, so that the next search makes a new one."""
        if self._db is not None:
            self._db.close()
            self._db = None
        where = f"{self.path}: " if self.path is not None else ""
        done = f"; {_set_aside(self.path)}" if self.path is not None and _damaged(error) else ""
        log.warning(f"checked files are not remembered: {where}{error}{done}")


def _connect(path: Path) -> "sqlite3.Connection":
    """The store at `path` with its table. Raises sqlite3.Error."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        if _version(db) != VERSION:
            with db:
                db.execute("BEGIN IMMEDIATE")
                if _version(db) != VERSION:  # another process may have made it meanwhile
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
    """Whether the file's content is at fault, and not a lock, a full disk or a permission."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the lowest byte is the primary code
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _set_aside(path: Path) -> str:
    """Rename a damaged store; returns what was done. The lock keeps another process' new one in its place."""
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

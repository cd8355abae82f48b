"""Checkpoints of a run, each with a digest, so that a damaged one is detected and an older one loaded instead.

    checkpoint.pt                     the newest
    checkpoint.1.pt checkpoint.2.pt   the previous ones
    checkpoint-best.pt                from the epoch with the lowest score by the session's criterion
    *.damaged                         unreadable, skipped on resume

Each is torch.save's zip archive with the archive comment `fastdarts sha256 DIGEST`, the digest of all bytes before the
comment. torch.load reads it too, and the digest detects truncated files and flipped bits. Older files have no comment and
are accepted without this check.
"""

import hashlib
import io
import logging
import os
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastdarts.engine.files import flush_folder, write_atomically, written_beside

NEWEST, BEST = "checkpoint.pt", "checkpoint-best.pt"
MARK = b"fastdarts sha256 "
COMMENT = len(MARK) + 64  # bytes
END, END_BYTES = b"PK\5\6", 22  # end record of a zip archive: signature, length without comment
BROKEN = (  # raised by torch.load for damaged files
    *(RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError),
    *(AssertionError, OverflowError, struct.error),
)
log = logging.getLogger("fastdarts")


class DamagedCheckpoint(ValueError):
    """Incomplete or damaged checkpoint file; the message gives its name and the reason."""


class Found(NamedTuple):
    """State of a checkpoint, its file, and the damaged files skipped before it."""

    path: Path
    state: dict[str, Any]
    damaged: tuple[Path, ...] = ()


def encode(state: dict[str, Any]) -> bytes:
    """Encode `state` (plain dicts, lists, tuples, numbers, text and tensors) as the bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    data = bytearray(file.getbuffer())
    data[-2:] = COMMENT.to_bytes(2, "little")  # length of the archive comment, empty so far
    return bytes(data + MARK + hashlib.sha256(data).hexdigest().encode())


def decode(data: bytes) -> dict[str, Any]:
    """Decode the bytes of `encode`, with tensors on the CPU; no code in the data is executed.

    Raises ValueError, and the errors of torch.load, for invalid data.
    """
    end = data[-END_BYTES:]
    if data[-COMMENT:-64] == MARK:
        if hashlib.sha256(memoryview(data)[:-COMMENT]).hexdigest().encode() != data[-64:]:
            raise ValueError("its digest does not match")
    elif not (end.startswith(END) and end.endswith(b"\0\0")):
        raise ValueError("it is truncated" if data else "it is empty")
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not isinstance(state.get("epoch"), int):
        raise ValueError("it does not contain the state of a run")
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load the state from a file. Raises DamagedCheckpoint."""
    try:
        return decode(path.read_bytes())
    except BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedCheckpoint(f"{path} is damaged ({reason})") from error


class Checkpoints:
    """Checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes, best: bool = False, keep: int = 2) -> None:
        """Write `data` (from `encode`) as the newest checkpoint, with `best` also as the best; keep `keep` newest and the best.

        Raises OSError and leaves the other checkpoints intact.
        """
        if best:
            write_atomically(self.folder / BEST, lambda file: file.write(data))
        with written_beside(self.folder / NEWEST, lambda file: file.write(data)) as incoming:
            for number in range(keep - 1, 0, -1):
                before = self._path(number - 1)
                if before.exists():
                    os.replace(before, self._path(number))
            os.replace(incoming, self.folder / NEWEST)
            flush_folder(self.folder)
        for number in self._numbers():
            if number >= keep:
                self._path(number).unlink(missing_ok=True)

    def newest(self) -> Found | None:
        """Return the newest intact checkpoint, or None without any; does not change the folder.

        Logs a damaged checkpoint and tries the next. Raises DamagedCheckpoint if all are damaged.
        """
        paths = [path for path in (*map(self._path, self._numbers()), self.folder / BEST) if path.exists()]
        whole: list[Found] = []
        damaged: dict[Path, str] = {}
        for path in paths:
            if whole and (not damaged or path.name != BEST):  # the first intact one in this order is the newest
                continue
            try:
                whole.append(Found(path, load_checkpoint(path)))
            except DamagedCheckpoint as error:
                damaged[path] = str(error)
        faults = "; ".join(damaged.values())
        if damaged and not whole:
            raise DamagedCheckpoint(faults)
        if not whole:
            return None
        found = max(whole, key=lambda f: steps_of(f.state))
        if damaged:
            log.warning(f"{faults}: using {found.path.name} instead, which is intact")
        return found._replace(damaged=tuple(damaged))

    def clear(self, found: Found | None) -> None:
        """Rename the damaged files and remove partial files of a killed process."""
        for path in self.folder.glob(".checkpoint*.tmp"):
            path.unlink(missing_ok=True)
        for path in found.damaged if found is not None else ():
            os.replace(path, path.with_name(f"{path.name}.damaged"))

    def _path(self, number: int) -> Path:
        return self.folder / (f"checkpoint.{number}.pt" if number else NEWEST)

    def _numbers(self) -> list[int]:
        """Return the numbers of the existing checkpoints, newest first."""
        middles = [path.name.split(".")[1] for path in self.folder.glob("checkpoint.*.pt")]
        numbers = [int(middle) for middle in middles if middle.isdecimal() and int(middle)]
        return sorted([0] * (self.folder / NEWEST).exists() + numbers)


def steps_of(state: dict[str, Any]) -> int:
    """Return the finished steps of the whole run."""
    return int(state.get("step", 0))

"""Files that are either the old one or the new one, whatever happens meanwhile."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk and put it in the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` by `state` (plain dicts, lists, numbers and tensors), atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What save_checkpoint wrote, with its tensors on the CPU; nothing in the file is executed."""
    return torch.load(path, map_location="cpu", weights_only=True)

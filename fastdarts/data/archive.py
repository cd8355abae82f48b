"""Images and labels in a .npz file: an array of pixels, or JPEG files one after the other. Nothing in it is unpickled.

Letters: N images, H, W their sides.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastdarts.data.errors import DataError
from fastdarts.data.index import few

try:
    from lzma import LZMAError
except ImportError:  # a Python without it reads no such member: zipfile says so
    LZMAError = OSError

IMAGES = ("images", "data", "x_train", "X_train", "train_images", "x", "X")
LABELS = ("labels", "y_train", "Y_train", "train_labels", "fine_labels", "targets", "y", "Y")
DAMAGE = (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error, LZMAError)
DAMAGE += (RuntimeError,)  # of zipfile: encrypted, or packed in a way that it does not know


def content_bytes(path: Path) -> int:
    """Bytes of all arrays in the file. Raises DataError for what is no whole .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except DAMAGE as error:
        wanted = "give a folder of CIFAR's python batches or of images, or a whole .npz"
        raise DataError(f"{path} is no whole .npz file ({_reason(error)}): {wanted}") from error


def read_archive(path: Path) -> tuple[np.ndarray | list[bytes], np.ndarray]:
    """Images and labels of a .npz file, under one of the names IMAGES and LABELS.

    Images are uint8 (N, H, W, 3) or (N, 3, H, W), and are given as (N, H, W, 3); or, where there is an array `offsets`,
    (N + 1,), the bytes from one offset to the next are a JPEG, and are given as they are. Labels are integers, (N,) or
    (N, 1), and are given as int64 (N,). Raises DataError, which names the file and what is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            data, labels = (archive[_name(path, names, among)] for among in (IMAGES, LABELS))
            offsets = archive["offsets"] if "offsets" in names else None
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path} is no whole .npz file of plain arrays ({_reason(error)}): write it anew") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be whole numbers, one for each image; they are {labels.dtype} {labels.shape}")
    labels = labels.astype(np.int64)
    return (_pixels(path, data) if offsets is None else _jpegs(path, data, offsets)), labels


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _name(path: Path, names: list[str], among: tuple[str, ...]) -> str:
    """The first of `among` that is there."""
    found = next((name for name in among if name in names), None)
    if found is None:
        raise DataError(f"{path} has no array of any of the names {', '.join(among)}: found {few(names) or 'none'}")
    return found


def _pixels(path: Path, data: np.ndarray) -> np.ndarray:
    if data.dtype != np.uint8 or data.ndim != 4 or 3 not in (data.shape[1], data.shape[3]):
        raise DataError(f"{path}: images must be uint8 (N, H, W, 3) or (N, 3, H, W); they are {data.dtype} {data.shape}")
    return data if data.shape[3] == 3 else data.transpose(0, 2, 3, 1)


def _jpegs(path: Path, data: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    ends = offsets.astype(np.int64) if offsets.dtype.kind in "iu" and offsets.ndim == 1 else np.zeros(0, np.int64)
    fits = len(ends) > 1 and ends[0] >= 0 and ends[-1] <= data.size and (np.diff(ends) > 0).all()
    if data.dtype != np.uint8 or data.ndim != 1 or not fits:
        told = f"data is {data.dtype} {data.shape}, offsets {offsets.dtype} {offsets.shape}"
        raise DataError(
            f"{path}: offsets must rise from the first image's byte in data, uint8 (B,), to the last one's end; {told}"
        )
    blob = data.tobytes()
    return [blob[first:last] for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]

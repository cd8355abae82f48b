"""Read images and labels from a .npz file: an array of pixels, or concatenated JPEG files. Never unpickles.

Notation: N images, H, W their sides.
"""

import logging
import re
import zipfile
import zlib
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdarts.data.errors import DataError
from fastdarts.data.packed import UNPACK, what_it_is
from fastdarts.quoting import shortlist

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it cannot read such members; zipfile reports that
    LZMAError = OSError

PAIRS = (  # names of the images and of their labels
    (("x_train", "X_train"), ("y_train", "Y_train")),
    (("train_x", "train_X", "trainX"), ("train_y", "train_Y", "trainY", "trainy")),
    (("train_images", "train_image", "train_data"), ("train_labels", "train_label", "train_targets")),
    (("images", "image", "imgs", "data"), ("labels", "label", "targets", "target", "fine_labels")),
    (("x", "X"), ("y", "Y")),
)
UNNAMED = re.compile(r"arr_\d+")  # numpy.savez's names for positional arrays
IGNORED = 255  # an ignore label, if all other labels are much smaller
DAMAGE = (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error, LZMAError)
DAMAGE += (RuntimeError,)  # from zipfile: encrypted, or an unknown compression method


log = logging.getLogger(__name__)


class Content(NamedTuple):
    """Content of a file.

    images   uint8 (N, H, W, 3), or the encoded bytes of each image
    labels   int64 (N,)
    classes  names by label; None if the labels are numbers
    """

    images: np.ndarray | list[bytes]
    labels: np.ndarray
    classes: tuple[str, ...] | None


def content_bytes(path: Path) -> int:
    """Return the bytes of all arrays. Raises DataError for a file that is not a complete .npz, OSError if it is unreadable."""
    if message := what_it_is(path):
        raise DataError(f"{path} {message}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGE as error:
        wanted = "give a folder of CIFAR's python batches or of images, or a complete .npz"
        raise DataError(f"{path} is not a complete .npz file ({_reason(error)}): {wanted}") from error
    if members and not any(member.filename.endswith(".npy") for member in members):
        raise DataError(f"{path} is a zip archive of other files, {shortlist([m.filename for m in members])}: {UNPACK}")
    return sum(member.file_size for member in members)


def read_archive(path: Path) -> Content:
    """Read the images and labels of a .npz file, under one of the PAIRS of names or unnamed (arr_0, arr_1).

    Images are uint8 or other integers in [0, 255], shaped (N, H, W, 3), (N, 3, H, W), or (H, W, 3, N) if N is the number of
    labels. Grayscale images (N, H, W), (N, H, W, 1) or (N, 1, H, W) become three equal channels. With an array `offsets`,
    (N + 1,), the bytes between consecutive offsets are one JPEG. Labels are (N,) or (N, 1): integers, booleans or class
    names; or one-hot (N, C). Labels that count from 1 are shifted to count from 0.
    Raises DataError, which names the file and the fault, also if the content is ambiguous.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = _Arrays(path, archive)
            images, labels = arrays.pair()
            offsets = archive["offsets"] if "offsets" in archive.files else None
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path} is not a complete .npz file of plain arrays ({_reason(error)}): write it again") from error
    numbers, classes = _labels(path, labels)
    return Content(_pixels(path, images, len(numbers)) if offsets is None else _jpegs(path, images, offsets), numbers, classes)


class _Arrays:
    """Arrays of an open .npz file."""

    def __init__(self, path: Path, archive: "np.lib.npyio.NpzFile") -> None:
        self.path, self.archive, self.names = path, archive, archive.files

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images and labels. Raises DataError unless exactly one pair is found."""
        found = [
            (image, label)
            for images, labels in PAIRS
            for image in images
            for label in labels
            if image in self.names and label in self.names
        ]
        if not found:
            found = self._mixed()
        if len(found) > 1:
            pairs = " or ".join(f"{image} and {label}" for image, label in found)
            raise DataError(
                f"{self.path}: ambiguous, images and labels may be {pairs}: write a file with the training pair only"
            )
        if found:
            return self.archive[found[0][0]], self.archive[found[0][1]]
        return self._unnamed()

    def _mixed(self) -> list[tuple[str, str]]:
        """Return the only images with the only labels, if their names come from two different PAIRS."""
        images = [name for pair in PAIRS for name in pair[0] if name in self.names]
        labels = [name for pair in PAIRS for name in pair[1] if name in self.names]
        return [(images[0], labels[0])] if len(images) == len(labels) == 1 else []

    def _unnamed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images and labels written by numpy.savez(FILE, images, labels), in any order."""
        arrays = [self.archive[name] for name in self.names if UNNAMED.fullmatch(name)]
        images, labels = [a for a in arrays if a.ndim > 2], [a for a in arrays if a.ndim <= 2]
        if len(images) == len(labels) == 1 and len(arrays) == len(self.names):
            return images[0], labels[0]
        known = ", ".join(f"{images[0]} with {labels[0]}" for images, labels in PAIRS)
        raise DataError(f"{self.path} has no images with labels: found {shortlist(self.names) or 'nothing'}; expected {known}")


def _labels(path: Path, labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return the labels, int64 (N,), and the class names."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    message = f"they are {labels.dtype} {labels.shape}"
    if labels.ndim == 2 and len(labels) and labels.dtype.kind in "iufb":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            raise DataError(f"{path}: each image must have exactly one label, a row of labels has several or none; {message}")
        labels = labels.argmax(1)
    if labels.ndim == 1 and labels.dtype.kind in "US":
        names, numbers = np.unique(labels.astype(str), return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.floor(labels)).all()))
    if labels.ndim != 1 or not whole:
        raise DataError(f"{path}: labels must be integers, one per image; {message}")
    numbers = labels.astype(np.int64)
    present = np.unique(numbers)
    if len(present) and present[0] < 0:
        raise DataError(f"{path}: labels must start at 0, found {present[0]} to {present[-1]}: remove images without a label")
    if len(present) > 1 and present[-1] == IGNORED and present[-2] < IGNORED // 2:
        raise DataError(
            f"{path}: labels are 0 to {present[-2]}, and {IGNORED}, which marks images without a label: remove those"
        )
    if len(present) and np.array_equal(present, np.arange(1, len(present) + 1)):
        log.info("%s: labels 1 to %d are shifted to start at 0", path, len(present))
        return numbers - 1, tuple(map(str, present.tolist()))
    return numbers, None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _pixels(path: Path, data: np.ndarray, labels: int) -> np.ndarray:
    """Return uint8 (N, H, W, 3) from any axis order read_archive accepts; labels: number of labels."""
    message = f"{path}: images must be uint8 (N, H, W, 3) or (N, 3, H, W); they are {data.dtype} {data.shape}"
    if data.dtype.kind not in "iu":
        raise DataError(f"{message}{_remedy(data)}")
    if data.dtype != np.uint8:
        if data.size and (data.min() < 0 or data.max() > 255):
            raise DataError(f"{message}, from {data.min()} to {data.max()}")
        data = data.astype(np.uint8)
    shape = data.shape
    last, first = data.ndim == 4 and shape[3] in (1, 3), data.ndim == 4 and shape[1] in (1, 3)
    if data.ndim == 4 and shape[2] in (1, 3) and shape[3] == labels and shape[0] != labels:
        data = data.transpose(3, 0, 1, 2)
    elif data.ndim == 3 and shape[0] == labels:
        data = data[..., None]
    elif first and not last:
        data = data.transpose(0, 2, 3, 1)
    elif not last:
        raise DataError(f"{message}{_remedy(data)}")
    return data if data.shape[3] == 3 else np.repeat(data, 3, axis=3)


def _remedy(data: np.ndarray) -> str:
    """Return how to convert images in another format."""
    if data.dtype.kind == "f":
        return ": write (255 * images).round().astype('uint8') for values in 0..1, images.astype('uint8') for 0..255"
    if data.ndim == 2 and data.shape[1] % 3 == 0 and isqrt(data.shape[1] // 3) ** 2 * 3 == data.shape[1]:
        side = isqrt(data.shape[1] // 3)
        return (
            f": write images.reshape(-1, 3, {side}, {side}) for channel-first rows as CIFAR's, "
            f"else images.reshape(-1, {side}, {side}, 3)"
        )
    if data.ndim == 4 and 4 in (data.shape[1], data.shape[3]):
        return ": four channels may be RGBA or CMYK, convert to RGB"
    return ""


def _jpegs(path: Path, data: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    ends = offsets.astype(np.int64) if offsets.dtype.kind in "iu" and offsets.ndim == 1 else np.zeros(0, np.int64)
    fits = len(ends) > 1 and ends[0] >= 0 and ends[-1] <= data.size and (np.diff(ends) > 0).all()
    if data.dtype != np.uint8 or data.ndim != 1 or not fits:
        message = f"data is {data.dtype} {data.shape}, offsets {offsets.dtype} {offsets.shape}"
        raise DataError(
            f"{path}: offsets must increase from the first image's first byte in data, uint8 (B,), to the last image's end; "
            f"{message}"
        )
    blob = data.tobytes()
    return [blob[first:last] for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]

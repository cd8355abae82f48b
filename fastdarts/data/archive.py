"""Read images and labels from a .npz file: an array of pixels, or concatenated JPEG files. Never unpickles.

Notation: N images, H, W their sides.
"""

import re
import zipfile
import zlib
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdarts.data.array_labels import numbered
from fastdarts.data.errors import DataError, NoTestImages
from fastdarts.data.packed import UNPACK, what_it_is
from fastdarts.quoting import shortlist

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it cannot read such members; zipfile reports that
    LZMAError = OSError

Pairs = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # names of the images and of their labels
OF_SPLIT: Pairs = (
    (("x_train", "X_train"), ("y_train", "Y_train")),
    (("train_x", "train_X", "trainX"), ("train_y", "train_Y", "trainY", "trainy")),
    (("train_images", "train_image", "train_data"), ("train_labels", "train_label", "train_targets")),
)
PLAIN: Pairs = (
    (("images", "image", "imgs", "data"), ("labels", "label", "targets", "target", "fine_labels")),
    (("x", "X"), ("y", "Y")),
)
TESTS = ("test", "val")  # names of test images, in order of preference
UNNAMED = re.compile(r"arr_\d+")  # numpy.savez's names for positional arrays
DAMAGE = (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error, LZMAError)
DAMAGE += (RuntimeError,)  # from zipfile: encrypted, or an unknown compression method


class Content(NamedTuple):
    """Content of a file.

    images   uint8 (N, H, W, 3), or the encoded bytes of each image
    labels   int64 (N,)
    classes  names by label; None if the labels are numbers
    """

    images: np.ndarray | list[bytes]
    labels: np.ndarray
    classes: tuple[str, ...] | None


def of_split(name: str) -> Pairs:
    """Return the names of a split's images and labels in a file that holds several splits."""
    return tuple((_renamed(images, name), _renamed(labels, name)) for images, labels in OF_SPLIT)


def _renamed(names: tuple[str, ...], split: str) -> tuple[str, ...]:
    return tuple(name.replace("train", split) for name in names)


TRAINING = of_split("train") + PLAIN
ALONE = of_split("test") + of_split("val") + PLAIN  # in a file of test images alone


def content_bytes(path: Path) -> int:
    """Return the bytes of all arrays. Raises DataError for a file that is not a complete .npz, OSError if it is unreadable."""
    return sum(member.file_size for member in _members(path))


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays. Raises like content_bytes."""
    return [member.filename.removesuffix(".npy") for member in _members(path)]


def holds(names: list[str], pairs: Pairs) -> bool:
    """Return whether arrays of these names are one of `pairs` of images and labels."""
    return any(set(images) & set(names) and set(labels) & set(names) for images, labels in pairs)


def _members(path: Path) -> list[zipfile.ZipInfo]:
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
    return members


def read_archive(path: Path, pairs: Pairs = TRAINING, classes: Sequence[str] | None = None) -> Content:
    """Read the images and labels of a .npz file, under one of the `pairs` of names or unnamed (arr_0, arr_1).

    classes  the training images' classes, for test images: a label is the name of its class; None: the file's own

    Images are uint8 or other integers in [0, 255], shaped (N, H, W, 3), (N, 3, H, W), or (H, W, 3, N) if N is the number of
    labels. Grayscale images (N, H, W), (N, H, W, 1) or (N, 1, H, W) become three equal channels. With an array `offsets`,
    (N + 1,), the bytes between consecutive offsets are one JPEG. Labels are (N,) or (N, 1): integers, booleans or class
    names; or one-hot (N, C). Labels that count from 1 are shifted to count from 0.
    Raises DataError, which names the file and the fault, also if the content is ambiguous.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = _Arrays(path, archive, pairs)
            images, labels = arrays.pair()
            offsets = archive["offsets"] if "offsets" in archive.files else None
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path} is not a complete .npz file of plain arrays ({_reason(error)}): write it again") from error
    numbers, names = numbered(path, labels, classes)
    return Content(_pixels(path, images, len(numbers)) if offsets is None else _jpegs(path, images, offsets), numbers, names)


def archive_of_tests(path: Path, training: Path | None) -> tuple[Path, Pairs] | None:
    """Return the .npz file with the test images, and the pairs of names to look for in it.

    path      file or folder given as the data
    training  .npz file of the training images, `path` if that is a file; None: `path` is a folder without one

    Returns None for a folder without test*.npz and val*.npz. Raises NoTestImages, a DataError, if there are none of `training`.
    """
    if training is None:
        return None if (alone := _named_test(path)) is None else (alone, ALONE)
    names = array_names(training)
    for split in TESTS:
        if holds(names, pairs := of_split(split)):
            return training, pairs
    if training.name.startswith(TESTS):
        return training, ALONE
    if "train" in training.name and (found := _named_test(training.parent, training)) is not None:
        return found, ALONE
    inside = ", ".join(f"{images[0]} with {labels[0]}" for images, labels in of_split("test"))
    near = shortlist(sorted(p.name for p in training.parent.glob("*.npz")))
    raise NoTestImages(
        f"{training} has no test images: looked for {inside} in it, and for test*.npz or val*.npz next to a train*.npz; found "
        f"{shortlist(names) or 'nothing'} in it, and the files {near}"
    )


def _named_test(folder: Path, training: Path | None = None) -> Path | None:
    """Return the test*.npz, else val*.npz, in `folder`: the one named as `training`, or the only one. Raises DataError."""
    for split in TESTS:
        if training is not None and (same := training.with_name(training.name.replace("train", split))).is_file():
            return same
        found = sorted(folder.glob(f"{split}*.npz"))
        if len(found) > 1:
            raise DataError(f"{folder} holds {shortlist([p.name for p in found])}: take all but one of them away")
        if found:
            return found[0]
    return None


class _Arrays:
    """Arrays of an open .npz file."""

    def __init__(self, path: Path, archive: "np.lib.npyio.NpzFile", pairs: Pairs) -> None:
        self.path, self.archive, self.names, self.pairs = path, archive, archive.files, pairs

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images and labels. Raises DataError unless exactly one pair is found."""
        found = [
            (image, label)
            for images, labels in self.pairs
            for image in images
            for label in labels
            if image in self.names and label in self.names
        ]
        if not found:
            found = self._mixed()
        if len(found) > 1:
            pairs = " or ".join(f"{image} and {label}" for image, label in found)
            raise DataError(f"{self.path}: ambiguous, images and labels may be {pairs}: write a file with only one of them")
        if found:
            return self.archive[found[0][0]], self.archive[found[0][1]]
        return self._unnamed()

    def _mixed(self) -> list[tuple[str, str]]:
        """Return the only images with the only labels, if their names come from two different pairs."""
        images = [name for pair in self.pairs for name in pair[0] if name in self.names]
        labels = [name for pair in self.pairs for name in pair[1] if name in self.names]
        return [(images[0], labels[0])] if len(images) == len(labels) == 1 else []

    def _unnamed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images and labels written by numpy.savez(FILE, images, labels), in any order."""
        arrays = [self.archive[name] for name in self.names if UNNAMED.fullmatch(name)]
        images, labels = [a for a in arrays if a.ndim > 2], [a for a in arrays if a.ndim <= 2]
        if len(images) == len(labels) == 1 and len(arrays) == len(self.names):
            return images[0], labels[0]
        known = ", ".join(f"{images[0]} with {labels[0]}" for images, labels in self.pairs)
        raise DataError(f"{self.path} has no images with labels: found {shortlist(self.names) or 'nothing'}; expected {known}")


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

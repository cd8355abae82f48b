"""Small images of one size, kept in memory: CIFAR's python batches, .npz files, folders of image files.

Notation: N images, S pixels a side.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdarts.data.archive import TRAINING, Pairs, archive_of_tests, content_bytes, read_archive
from fastdarts.data.cifar_pickle import BATCH_FILES, files_of, read_batches
from fastdarts.data.decode import pillow_warnings, read_rgb
from fastdarts.data.errors import DataError
from fastdarts.data.index import ImageIndex
from fastdarts.data.packed import packed
from fastdarts.data.placement import SHARE, available_ram, gib
from fastdarts.data.sample import sample_root
from fastdarts.data.val_folder import evaluation_index
from fastdarts.quoting import quoted, shortlist

SIDE = 32  # of the sample's images
CHUNK = 64  # images per decoding task
WANTED = "cifar-10-batches-py or cifar-100-python, a .npz file of images and labels, or a folder with train/CLASS/*"
Split = Literal["train", "test"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageArray:
    """Training or test images of a data set, in file order; an image's position is its stable index.

    root     source file or folder
    classes  names
    files    a name for each image: train/NUMBER or test/NUMBER, or its path relative to root
    labels   int64 (N,), position of each image's class in `classes`
    pixels   uint8 (N, S, S, 3), RGB, contiguous, on the CPU
    """

    root: Path
    classes: tuple[str, ...]
    files: Sequence[str]
    labels: Tensor
    pixels: Tensor

    @staticmethod
    def make(
        root: Path,
        pixels: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str] | None = None,
        files: Sequence[str] | None = None,
        split: Split = "train",
    ) -> "ImageArray":
        """Check and wrap pixels, uint8 (N, S, S, 3), and labels, int64 (N,). Unnamed classes get numbers, files SPLIT/NUMBER.

        Raises DataError.
        """
        if not len(pixels) or pixels.shape[1] != pixels.shape[2] or not pixels.shape[1]:
            raise DataError(f"{root}: expected at least one image, all square, got {' x '.join(map(str, pixels.shape))}")
        if len(labels) != len(pixels):
            raise DataError(f"{root}: {len(pixels)} images, but {len(labels)} labels")
        most = int(labels.max())
        names = tuple(str(i) for i in range(min(most + 1, len(labels)))) if classes is None else tuple(classes)
        if labels.min() < 0 or most >= len(names):
            raise DataError(
                f"{root}: labels must be 0 to the number of classes - 1, at most {len(names)} classes; "
                f"found {labels.min()} to {most}"
            )
        names_of_images = tuple(f"{split}/{i}" for i in range(len(labels))) if files is None else files
        array = torch.from_numpy(np.ascontiguousarray(pixels))
        return ImageArray(root, names, names_of_images, torch.from_numpy(labels.astype(np.int64)), array)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Return S."""
        return self.pixels.shape[1]

    def sha256(self) -> str:
        """Return the digest of labels and pixels."""
        digest = hashlib.sha256(f"fastdarts images {tuple(self.pixels.shape)}\n".encode())
        digest.update(self.labels.numpy())
        digest.update(self.pixels.numpy())
        return digest.hexdigest()


def read_images(
    path: str | os.PathLike[str],
    threads: int = 1,
    split: Split = "train",
    classes: Sequence[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> ImageArray:
    """Read the images of any WANTED format; also the parent folder of python batches, or the folder of a train*.npz.

    threads  number of decoding threads
    split    "test": the images of test_batch or test, of test*.npz or val*.npz next to train*.npz, of x_test and y_test in
             the same .npz, or of test/CLASS/* or val/CLASS/*; the training images need not exist
    classes  the training images' classes, for test images; None: the test images' own
    labels   file of labels of a flat folder of test images (data.label_file)

    Raises DataError for missing or damaged files, mixed sizes or data too large for RAM; NoTestImages, a DataError, if there
    are none. The message names fault and place.
    """
    log.info("reading %s from %s", "images" if split == "train" else "test images", path)
    try:
        return _read(Path(path), threads) if split == "train" else _read_test(Path(path), threads, classes, labels)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}; give {WANTED}") from error


def _sources(path: Path) -> tuple[Path, Path | None]:
    """Return the folder of python batches in `path`, else `path`, and the only train*.npz in it, or `path` if it is a file."""
    if not path.exists():
        raise DataError(f"{path} does not exist: give {WANTED}")
    if not path.is_dir():
        return path, path
    inside = [path / name for name in BATCH_FILES if (path / name).is_dir()]
    archives = sorted(path.glob("train*.npz"))
    if len(inside) + len(archives) > 1:
        raise DataError(f"{path} holds {shortlist([p.name for p in inside + archives])}: give one of them")
    return (inside[0] if inside else path), (archives[0] if archives else None)


def _read(path: Path, threads: int) -> ImageArray:
    folder, archive = _sources(path)
    if files := files_of(folder):
        return ImageArray.make(folder, *read_batches(folder, files))
    if archive is not None:
        return _from_archive(archive, TRAINING, threads)
    if (path / "train").is_dir():
        return _from_files(ImageIndex.from_root(path), threads)
    found = sorted(os.listdir(folder))
    raise DataError(f"{folder} has no training images: give {WANTED}; found {shortlist(found) or 'nothing'}{packed(found)}")


def _read_test(path: Path, threads: int, classes: Sequence[str] | None, labels: str | os.PathLike[str] | None) -> ImageArray:
    folder, archive = _sources(path)
    if files := files_of(folder):
        _check_unlabelled(path, labels)
        pixels, numbers, names = read_batches(folder, files, "test")
        if classes is not None and names != tuple(classes):
            raise DataError(f"{folder} has the classes {shortlist(names)}, the training images {shortlist(classes)}")
        return ImageArray.make(folder, pixels, numbers, names, split="test")
    if (source := archive_of_tests(path, archive)) is not None:
        _check_unlabelled(path, labels)
        return _from_archive(*source, threads, classes, "test")
    return _from_files(evaluation_index(path, classes, labels), threads)


def _check_unlabelled(path: Path, labels: str | os.PathLike[str] | None) -> None:
    if labels is not None:
        raise DataError(f"--val_labels {labels}: the test images of {path} come with labels: leave it out")


def sample_images(cache: str | os.PathLike[str] | None = None, split: Split = "train") -> ImageArray:
    """Return the generated sample resized to 32 x 32 pixels: 10 classes of 100, or for "test" of 40 other images.

    Arguments and errors as in sample_root.
    """
    index = ImageIndex.from_root(sample_root(cache)) if split == "train" else evaluation_index(sample_root(cache, "val"))
    images = [np.asarray(read_rgb(index.path(i)).resize((SIDE, SIDE), Image.Resampling.BOX)) for i in range(len(index))]
    return ImageArray.make(index.root, np.stack(images), index.labels.numpy(), index.classes, index.files)


def _from_archive(
    path: Path, pairs: Pairs, threads: int, classes: Sequence[str] | None = None, split: Split = "train"
) -> ImageArray:
    _check_room(content_bytes(path), path)
    images, labels, names = read_archive(path, pairs, classes)
    if isinstance(images, list):
        places = [f"image {i} of {path}" for i in range(len(images))]
        images = _decoded(places, lambda i: read_rgb(places[i], images[i]), threads, path)
    return ImageArray.make(path, images, labels, names, split=split)


def _from_files(index: ImageIndex, threads: int) -> ImageArray:
    names = [index.path(i) for i in range(len(index))]
    pixels = _decoded(names, lambda i: read_rgb(names[i]), threads, index.root)
    return ImageArray.make(index.root, pixels, index.labels.numpy(), index.classes, index.files)


def _decoded(names: Sequence[str], read: Callable[[int], Image.Image], threads: int, where: Path) -> np.ndarray:
    """Decode all images, uint8 (N, H, W, 3). Raises DataError naming an image that is bad or differs in size from the first."""
    with pillow_warnings():
        first = read(0)
        _check_room(3 * first.height * first.width * len(names), where)
        pixels = np.empty((len(names), first.height, first.width, 3), np.uint8)
        fill = partial(_fill, pixels, names, read)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            futures = [pool.submit(fill, range(len(names))[i : i + CHUNK]) for i in range(0, len(names), CHUNK)]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)
    return pixels


def _fill(pixels: np.ndarray, names: Sequence[str], read: Callable[[int], Image.Image], numbers: range) -> None:
    for number in numbers:
        image = read(number)
        if (image.height, image.width) != pixels.shape[1:3]:
            message = f"{quoted(names[number])} has {image.width}x{image.height} pixels"
            message += f", {quoted(names[0])} {pixels.shape[2]}x{pixels.shape[1]}"
            raise DataError(f"{message}: all must have the same size; python -m fastdarts.search_imagenet takes any sizes")
        pixels[number] = np.asarray(image)


def _check_room(size: int, where: Path) -> None:
    """Raise DataError if `size` bytes do not fit into RAM."""
    if size > SHARE * (free := available_ram()):
        raise DataError(f"{where}: its images need {gib(size)}, RAM has {gib(free)} free, of which at most {SHARE:.0%} is used")

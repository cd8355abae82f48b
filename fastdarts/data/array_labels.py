"""Labels of an array of images, in any form: numbers, one-hot rows or class names -> positions of classes.

Notation: N images, C classes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastdarts.data.errors import DataError
from fastdarts.quoting import shortlist

IGNORED = 255  # an ignore label, if all other labels are much smaller
log = logging.getLogger(__name__)


def numbered(path: Path, labels: np.ndarray, classes: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return the labels of the file `path` as positions of classes, int64 (N,), and the class names, None for plain numbers.

    labels   (N,) or (N, 1), integers, booleans or names; or one-hot (N, C)
    classes  the training images' classes, for test images: a label is the name of its class; None: the file's own, which are
             shifted to count from 0 if they count from 1

    Raises DataError, which names the file, for labels that are not of one class each, or of none of `classes`.
    """
    labels = _one_each(path, labels)
    return _classes(path, labels) if classes is None else (_positions(path, labels, classes), tuple(classes))


def _one_each(path: Path, labels: np.ndarray) -> np.ndarray:
    """Return one label for each image, (N,), int64 or text."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    message = f"they are {labels.dtype} {labels.shape}"
    if labels.ndim == 2 and len(labels) and labels.dtype.kind in "iufb":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            raise DataError(f"{path}: each image must have exactly one label, a row of labels has several or none; {message}")
        labels = labels.argmax(1)
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return labels.astype(str)
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.floor(labels)).all()))
    if labels.ndim != 1 or not whole:
        raise DataError(f"{path}: labels must be integers, one per image; {message}")
    return labels.astype(np.int64)


def _classes(path: Path, labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return the labels as numbers from 0, int64 (N,), and the class names."""
    if labels.dtype.kind == "U":
        names, positions = np.unique(labels, return_inverse=True)
        return positions.astype(np.int64), tuple(names.tolist())
    numbers, present = labels, np.unique(labels)
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


def _positions(path: Path, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the position in `classes` of each label's class, int64 (N,). Raises DataError for a label of none."""
    position = {name: i for i, name in enumerate(classes)}
    names, inverse = np.unique(labels.astype(str), return_inverse=True)
    if unknown := [name for name in names.tolist() if name not in position]:
        theirs = f"the training images have {shortlist(classes)}"
        raise DataError(f"{path}: {len(unknown)} labels are no classes of the training images, {shortlist(unknown)}; {theirs}")
    return np.array([position[name] for name in names.tolist()], np.int64)[inverse]

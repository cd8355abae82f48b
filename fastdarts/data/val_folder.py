"""Find the test images of a folder: ROOT/test or ROOT/val, in class folders or flat with a file of labels."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fastdarts.data.errors import DataError, NoTestImages
from fastdarts.data.index import ImageIndex, listing
from fastdarts.data.label_file import find_labels, read_labels
from fastdarts.quoting import shortlist

SPLITS = ("test", "val", "valid", "validation")  # in order of preference; ImageNet's test images have no labels
INNER = "images"  # folder in a flat one, as in Tiny-ImageNet's val/images/*

log = logging.getLogger(__name__)


def evaluation_index(
    root: str | os.PathLike[str], classes: Sequence[str] | None = None, labels: str | os.PathLike[str] | None = None
) -> ImageIndex:
    """Return the test images of `root`: the first of SPLITS that is there with labels.

    classes  the training images' classes; None: those of ROOT/train, or the test images' own if there is none
    labels   file of labels for a flat folder, by default found in it or next to it (data.label_file)

    A folder of class folders counts if one of them is a class. Raises NoTestImages, a DataError, if `root` has none of SPLITS;
    DataError if the images have no labels, or some of no known class. The message names the remedy.
    """
    root = Path(root)
    folders, _ = listing(root)
    if classes is None and "train" in folders:
        classes = ImageIndex.from_root(root).classes
    present = [split for split in SPLITS if split in folders]
    if not present:
        found = shortlist(folders) or "nothing"
        raise NoTestImages(f"{root} has no test images: looked for val/CLASS/*.JPEG and test/CLASS/*.JPEG, found {found}")
    for split in present:
        if (index := _labelled(root, split, classes, labels)) is not None:
            log.info("the test images are those of %s", root / split)
            return index
    raise DataError(_without_labels(root, present[-1]))


def _labelled(
    root: Path, split: str, classes: Sequence[str] | None, labels: str | os.PathLike[str] | None
) -> ImageIndex | None:
    """Return the images of a split in class folders, or flat with labels; None if they have no labels."""
    folders, loose = listing(root / split)
    named = any(name in classes for name in folders) if classes else folders not in ([], [INNER]) and not loose
    if named and labels is not None:
        raise DataError(f"--val_labels {labels}: {root / split} has class folders, whose names are the labels: leave it out")
    if named:
        return ImageIndex.from_root(root, split, classes)
    names = [f"{split}/{name}" for name in loose]
    if folders == [INNER]:
        names += [f"{split}/{INNER}/{name}" for name in listing(root / split / INNER)[1]]
    path = Path(labels) if labels is not None else find_labels(root, split)
    if not names or path is None:
        return None
    log.info("labels of the images in %s are taken from %s", root / split, path)
    return ImageIndex(root, *read_labels(path, names, classes))


def _without_labels(root: Path, split: str) -> str:
    """Return the sentence for a folder whose images have no labels, with the remedies."""
    folders, loose = listing(root / split)
    if loose or folders == [INNER]:
        lie = f"is flat, its {len(loose)} images are directly in it" if loose else f"is flat, its images are in {INNER}/"
        return (
            f"{root / split} {lie}, without labels: move each into the folder of its class, {split}/CLASS/, or give "
            "--val_labels FILE of lines NAME LABEL (val.txt, val_annotations.txt, LOC_val_solution.csv, ...)"
        )
    found = shortlist(folders) or "nothing"
    return f"{root / split} has no folder of a class of the training images: looked for {split}/CLASS/*.JPEG, found {found}"

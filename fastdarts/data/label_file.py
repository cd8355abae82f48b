"""Read the labels of a flat folder of test images from a text file.

Each line is NAME LABEL, separated by blanks, a tab, a comma or a semicolon, as in caffe's val.txt, Tiny-ImageNet's
val_annotations.txt and Kaggle's LOC_val_solution.csv; or LABEL alone, in the order of the images' names, as in ImageNet's
devkit. LABEL is the name of a class folder, or its position in sorted order, from 0.
"""

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from fastdarts.data.errors import DataError
from fastdarts.data.lists import HEADING, lines_of
from fastdarts.quoting import native, quoted, shortlist

NAMES = ("{}_annotations.txt", "{}.txt", "{}_labels.txt", "{}.csv")  # {}: the folder's name
IMAGENET = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC_clsloc_validation_ground_truth.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
MAP = "map_clsloc.txt"  # of ImageNet's devkits since 2014: lines "n02119789 1 kit_fox"
NUMBER = re.compile(r"-?[0-9]+")
FORM = "write lines NAME LABEL, with LABEL the name of a class folder or its position in sorted order, from 0"

log = logging.getLogger(__name__)


class Line(NamedTuple):
    """Line of a file: its number from 1, the position of its image, the label and further fields."""

    number: int
    image: int
    label: str


def find_labels(root: Path, split: str) -> Path | None:
    """Return the file of labels in or next to the folder root/split, by its usual names; None without."""
    names = [name.format(split) for name in NAMES] + [name for name in IMAGENET if split == "val"]
    paths = (folder / name for name in names for folder in (root / split, root))
    return next((path for path in paths if path.is_file()), None)


def read_labels(
    path: Path, files: Sequence[str], classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...], Tensor]:
    """Return the class names, the labelled ones of `files`, and their labels, int64.

    files    names relative to ROOT, sorted; a line names one by its last part, with or without the extension
    classes  names of all classes, in the order of their labels; None: those of the file

    Images without a label are left out, and lines of other images: both are logged. Raises DataError, which names the file and
    the first wrong line, if it is unreadable, names no image or one twice, or has a label of no class.
    """
    lines = _lines(path, files)
    names, labels = _positions(path, lines, classes)
    kept = sorted(zip((line.image for line in lines), labels, strict=True))
    if len(kept) < len(files):
        missing = sorted(set(range(len(files))).difference(image for image, _ in kept))
        without = shortlist([files[i] for i in missing])
        log.warning("%s: %d of %d images have no label and are left out: %s", path, len(missing), len(files), without)
    return names, tuple(files[image] for image, _ in kept), torch.tensor([label for _, label in kept])


def _lines(path: Path, files: Sequence[str]) -> list[Line]:
    """Return the lines that label an image. Raises DataError."""
    texts = [(number, line.strip()) for number, line in enumerate(lines_of(path), start=1)]
    texts = [(number, text) for number, text in texts if text and not text.startswith("#")]
    if not texts:
        raise DataError(f"{path} is empty: {FORM}")
    if all(len(_fields(text)) == 1 for _, text in texts):
        return _bare(path, texts, files)
    known = _by_name(files)
    found: dict[int, Line] = {}
    others = []
    for number, text in texts:
        name, label = _split(text, known)
        image = known.get(_last(name))
        if image is None:
            if not (number == texts[0][0] and HEADING.fullmatch(text.replace('"', ""))):
                others.append(name)
            continue
        if not label:
            raise DataError(f"{path}, line {number}: {quoted(native(text))} has no label: {FORM}")
        if image in found:
            raise DataError(f"{path}, line {number}: {quoted(files[image])} has a label in line {found[image].number} already")
        found[image] = Line(number, image, label)
    folder = PurePosixPath(files[0]).parent
    if not found:
        raise DataError(f"{path} names no image of {folder}, as {quoted(files[0])}; it names {shortlist(others)}: {FORM}")
    if others:
        log.warning("%s: %d lines name no image of %s: %s", path, len(others), folder, shortlist(others))
    return list(found.values())


def _bare(path: Path, texts: list[tuple[int, str]], files: Sequence[str]) -> list[Line]:
    """Return lines of labels alone, which are those of all images in the order of their names."""
    if len(texts) != len(files):
        raise DataError(f"{path} has {len(texts)} labels without names for {len(files)} images: {FORM}")
    labels = [text for _, text in texts]
    if all(map(NUMBER.fullmatch, labels)) and "0" not in labels:
        labels = _of_devkit(path, labels)
    return [Line(number, image, label) for image, ((number, _), label) in enumerate(zip(texts, labels, strict=True))]


def _of_devkit(path: Path, labels: list[str]) -> list[str]:
    """Return the class names of ImageNet's numbers, which follow its devkit's order and not the sorted one."""
    table = path.with_name(MAP)
    if not table.is_file():
        raise DataError(
            f"{path} has numbers from 1, as ImageNet's devkit, whose order is not the sorted one of class folders: put the "
            f"devkit's {MAP} (lines 'n02119789 1 kit_fox') next to it, or {FORM}"
        )
    rows = [line.split() for line in lines_of(table) if line.strip()]
    names = {row[1]: row[0] for row in rows if len(row) > 1}
    if unknown := sorted(set(labels).difference(names)):
        raise DataError(f"{path} has numbers that {table} has not: {shortlist(unknown)}")
    return [names[label] for label in labels]


def _positions(path: Path, lines: list[Line], classes: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """Return the class names and the position of each line's class. Raises DataError for the first label of none."""
    known = set(classes or ())
    labels = [line.label if line.label in known else line.label.split()[0] for line in lines]
    numbers = all(map(NUMBER.fullmatch, labels)) and not known.issuperset(labels)
    if classes is not None:
        names = tuple(classes)
    elif numbers:
        names = tuple(map(str, range(max(map(int, labels)) + 1)))
    else:
        names = tuple(sorted(set(labels), key=os.fsencode))
    position = {str(i) if numbers else name: i for i, name in enumerate(names)}
    for line, label in zip(lines, labels, strict=True):
        if label not in position:
            kinds = f"{len(names)} classes, {shortlist(names)}"
            raise DataError(f"{path}, line {line.number}: {quoted(native(label))} is no label of {kinds}: {FORM}")
    return names, [position[label] for label in labels]


def _by_name(files: Sequence[str]) -> dict[str, int]:
    """Map the last part of each name, and without its extension if that is unique, to its position."""
    names = [PurePosixPath(name) for name in files]
    counts = Counter(name.stem for name in names)
    stems = {name.stem: i for i, name in enumerate(names) if counts[name.stem] == 1}
    return stems | {name.name: i for i, name in enumerate(names)}


def _last(name: str) -> str:
    return native(name.replace("\\", "/").rpartition("/")[2])


def _fields(text: str) -> list[str]:
    """Return the fields of a line: of a table, or separated by blanks."""
    for delimiter in "\t,;":
        if delimiter in text:
            return [field.strip() for field in next(csv.reader([text], delimiter=delimiter))]
    return text.split()


def _split(text: str, known: dict[str, int]) -> tuple[str, str]:
    """Return the name and the label of a line; a name may contain blanks if its label does not."""
    fields = _fields(text)
    if any(delimiter in text for delimiter in "\t,;"):
        return fields[0], fields[1] if len(fields) > 1 else ""
    first, _, rest = text.partition(" ")
    if _last(first) in known or len(fields) < 2:
        return first, rest.strip()
    name, label = text.rsplit(None, 1)
    return name, label

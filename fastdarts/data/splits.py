"""The images that move the weights and those that move alpha: class-balanced, disjoint parts of the training images."""

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from fastdarts.data.errors import DataError
from fastdarts.data.index import Index, few
from fastdarts.ops.philox import Purpose, Stream, random_words


def subsets(index: Index, train_fraction: float, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw (train, val) of each class: the same fractions of every class, no image in both.

    A class' n images are ordered by (random word of `seed`, index). Train takes the first
    floor(train_fraction * n + 0.5), val the next floor(val_fraction * n + 0.5) as far as they go; each at least one
    where the class has two images, and train the only image of a class.
    Returns two int64 (N,) tensors of sorted indices. Raises DataError for fractions outside (0, 1) or that overlap,
    and if no class has an image left for val.
    """
    for name, fraction in (("train_fraction", train_fraction), ("val_fraction", val_fraction)):
        if not 0 < fraction < 1:
            raise DataError(f"{name} is {fraction}: it must lie between 0 and 1, both excluded")
    if train_fraction + val_fraction > 1 + 1e-9:
        total = f"{train_fraction} + {val_fraction} is more than 1"
        raise DataError(f"fractions overlap, train_fraction + val_fraction = {total}: make one of them smaller")
    words = random_words(seed, Stream.TRAIN, 0, torch.arange(len(index)), Purpose.SUBSET, 1)[:, 0]
    parts = []
    for members in index.labels.argsort(stable=True).split(index.labels.bincount().tolist()):
        drawn = members[words[members].sort(stable=True).indices]
        n = len(members)
        n_train = max(1, min(math.floor(train_fraction * n + 0.5), n - 1))
        n_val = max(1, math.floor(val_fraction * n + 0.5))
        parts.append((drawn[:n_train], drawn[n_train : n_train + n_val]))
    train, val = (torch.cat(part).sort().values for part in zip(*parts, strict=True))
    if not len(val):
        raise DataError(f"{index.root} has one image in each class, so none is left for validation: add images")
    return train, val


def write_list(path: str | os.PathLike[str], index: Index, indices: Tensor) -> None:
    """Write the names of `indices`, relative to the index' root, one in each line. Raises OSError."""
    text = "".join(f"{index.files[i]}\n" for i in indices.tolist())
    Path(path).write_text(text, encoding="utf-8", errors="surrogateescape")


def read_list(path: str | os.PathLike[str], index: Index) -> Tensor:
    """The inverse of write_list, for lists of the user's own too: int64 (N,), sorted; blank lines are skipped.

    Raises DataError for a list that is unreadable, empty, names an image twice, or names what the index does not hold.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise DataError(f"cannot read the file list {path}: {error.strerror}") from error
    names = [line.strip() for line in lines if line.strip()]
    number = {name: i for i, name in enumerate(index.files)}
    if missing := [name for name in names if name not in number]:
        form = f"names are relative to it, as in {index.files[0]}"
        raise DataError(f"{path}: {len(missing)} of {len(names)} are not images of {index.root}: {few(missing)}; {form}")
    if not names:
        raise DataError(f"the file list {path} is empty: write one name in each line, as in {index.files[0]}")
    indices = torch.tensor([number[name] for name in names]).sort().values
    if len(twice := indices[1:][indices[1:] == indices[:-1]]):
        raise DataError(f"{path} lists an image twice: {few([index.files[i] for i in twice.tolist()])}")
    return indices

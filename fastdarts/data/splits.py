"""Class-balanced, disjoint splits of the training images: for weights and alpha, or for training and a held-back share."""

import math

import torch
from torch import Tensor

from fastdarts.data.errors import DataError
from fastdarts.data.index import Index
from fastdarts.ops.philox import Purpose, Stream, random_words


def subsets(index: Index, train_fraction: float, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw (train, val) with equal fractions of every class and no image in both.

    The n images of a class are ordered by (random word of `seed`, index). Train takes the first
    floor(train_fraction * n + 0.5), val up to floor(val_fraction * n + 0.5) of the following. Each takes at least one if the
    class has two images; train takes the only image of a class.
    Returns two int64 (N,) tensors of sorted indices. Raises DataError if fractions lie outside (0, 1) or overlap, or if no
    class has an image left for val.
    """
    for name, fraction in (("train_fraction", train_fraction), ("val_fraction", val_fraction)):
        if not 0 < fraction < 1:
            raise DataError(f"{name} is {fraction}: it must be above 0 and below 1")
    if train_fraction + val_fraction > 1 + 1e-9:
        total = f"{train_fraction} + {val_fraction} is more than 1"
        raise DataError(f"fractions overlap, train_fraction + val_fraction = {total}: reduce one of them")
    parts = []
    for drawn in _drawn(index, seed):
        n = len(drawn)
        n_train = max(1, min(math.floor(train_fraction * n + 0.5), n - 1))
        n_val = max(1, math.floor(val_fraction * n + 0.5))
        parts.append((drawn[:n_train], drawn[n_train : n_train + n_val]))
    train, val = (torch.cat(part).sort().values for part in zip(*parts, strict=True))
    if not len(val):
        raise DataError(f"{index.root} has one image in each class, so none is left for validation: add images")
    return train, val


def held_back(index: Index, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return (train, val): val holds `fraction` of every class, in [0, 1), train all other images.

    Of the n images of a class, in the order of `subsets`, val takes the first floor(fraction * n + 0.5), but at least one and
    at most n - 1; train takes the only image of a class. With fraction 0, val is empty.
    Returns two int64 (N,) tensors of sorted indices. Raises DataError if no class has an image left for val.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"val_fraction is {fraction}: it must be at least 0 and below 1")
    everything = torch.arange(len(index))
    if not fraction:
        return everything, everything[:0]
    parts = []
    for drawn in _drawn(index, seed):
        count = max(1, math.floor(fraction * len(drawn) + 0.5))
        parts.append(drawn[: max(0, min(count, len(drawn) - 1))])
    val = torch.cat(parts)
    if not len(val):
        raise DataError(f"{index.root} has one image in each class, so none can be held back: give --val_fraction 0")
    return everything[~torch.isin(everything, val)], val.sort().values


def _drawn(index: Index, seed: int) -> list[Tensor]:
    """Return the images of each class in the order of (random word of `seed`, index)."""
    words = random_words(seed, Stream.TRAIN, 0, torch.arange(len(index)), Purpose.SUBSET, 1)[:, 0]
    classes = index.labels.argsort(stable=True).split(index.labels.bincount().tolist())
    return [members[words[members].sort(stable=True).indices] for members in classes]

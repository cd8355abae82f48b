"""Class-balanced, disjoint subsets."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdarts.data import DataError, ImageIndex, held_back, subsets
from fastdarts.ops.philox import philox4x32


def index_of(*counts: int) -> ImageIndex:
    """An index of classes of these sizes, without files."""
    classes = tuple(f"c{i}" for i in range(len(counts)))
    files = tuple(f"train/{name}/{i}.JPEG" for name, n in zip(classes, counts, strict=True) for i in range(n))
    return ImageIndex(Path("root"), classes, files, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))


def test_sizes_are_rounded_per_class() -> None:
    index = index_of(1300, 732, 25, 3, 2, 1)
    train, val = subsets(index, 0.1, 0.025, seed=0)
    assert index.labels[train].bincount().tolist() == [130, 73, 3, 1, 1, 1]  # 73.2, 2.5, 0.3, 0.2, 0.1
    assert index.labels[val].bincount().tolist() == [33, 18, 1, 1, 1]  # 32.5, 18.3, 0.6
    both = torch.cat((train, val))
    assert len(both.unique()) == len(both)
    assert train.dtype == val.dtype == torch.int64
    assert train.equal(train.sort().values) and val.equal(val.sort().values)


def test_halves_use_all_images() -> None:
    index = index_of(10, 7, 2)
    train, val = subsets(index, 0.5, 0.5, seed=3)
    assert index.labels[train].bincount().tolist() == [5, 4, 1]
    assert index.labels[val].bincount().tolist() == [5, 3, 1]
    assert torch.cat((train, val)).sort().values.equal(torch.arange(19))
    assert index.labels[subsets(index, 0.9, 0.1, seed=3)[1]].bincount().tolist() == [1, 1, 1]


def test_images_with_smallest_words_are_chosen() -> None:
    """Against the counter written out: word 0 of (0, image, time 0, purpose SUBSET 0 + 256 * stream TRAIN 0)."""
    index = index_of(6, 5)
    words = [philox4x32(torch.tensor([0, i, 0, 0]), 42)[0].item() for i in range(11)]
    first, second = sorted(range(6), key=words.__getitem__), sorted(range(6, 11), key=words.__getitem__)
    train, val = subsets(index, 0.34, 0.2, seed=42)
    assert train.tolist() == sorted(first[:2] + second[:2]) and val.tolist() == sorted(first[2:3] + second[2:3])


def test_splits_depend_on_seed() -> None:
    index = index_of(100, 100)

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        return subsets(index, 0.2, 0.2, seed)

    assert all(a.equal(b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert not drawn(1)[0].equal(drawn(2)[0])
    assert drawn(2**64 - 1)[0].shape == (40,)


@pytest.mark.parametrize("fractions", [(0.8, 0.3), (0.6, 0.41)])
def test_overlapping_fractions_are_rejected(fractions: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="fractions overlap"):
        subsets(index_of(10), *fractions, seed=0)


@pytest.mark.parametrize(
    ("fractions", "named"),
    [((0.0, 0.1), "train"), ((1.0, 0.1), "train"), ((0.1, -0.5), "val"), ((0.1, float("nan")), "val")],
)
def test_fractions_out_of_range_are_rejected(fractions: tuple[float, float], named: str) -> None:
    with pytest.raises(DataError, match=f"{named}_fraction is"):
        subsets(index_of(10), *fractions, seed=0)


def test_rounding_does_not_cause_overlap() -> None:
    subsets(index_of(10), 0.7, 0.1 + 0.2, seed=0)  # adds up to 1.0000000000000002 or so


def test_single_image_per_class_is_rejected() -> None:
    with pytest.raises(DataError, match="none is left for validation"):
        subsets(index_of(1, 1, 1), 0.5, 0.5, seed=0)


def test_nothing_is_held_back_by_default() -> None:
    train, val = held_back(index_of(4, 1), 0.0, seed=0)
    assert train.tolist() == [0, 1, 2, 3, 4] and val.tolist() == [] and val.dtype == torch.int64


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5, 0.7, 0.99])
def test_images_not_held_back_train(fraction: float) -> None:
    """No image is lost to rounding, and each class with two images has some of both."""
    counts = (15, 5, 4, 3, 2, 1)
    index = index_of(*counts)
    train, val = held_back(index, fraction, seed=1)
    assert torch.cat((train, val)).sort().values.equal(torch.arange(30))
    assert train.equal(train.sort().values) and val.equal(val.sort().values)
    held = index.labels[val].bincount(minlength=6).tolist()
    assert held == [min(n - 1, max(1, int(fraction * n + 0.5))) for n in counts]


def test_held_back_images_have_smallest_words() -> None:
    """As in `subsets`, whose training images come first: the order of a class depends on the seed alone."""
    index = index_of(20, 10)
    assert held_back(index, 0.2, seed=7)[1].equal(subsets(index, 0.2, 0.5, seed=7)[0])
    assert not held_back(index, 0.2, seed=8)[1].equal(held_back(index, 0.2, seed=7)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_held_back_fractions_out_of_range_are_rejected(fraction: float) -> None:
    with pytest.raises(DataError, match=r"val_fraction is .* at least 0 and below 1"):
        held_back(index_of(10), fraction, seed=0)


def test_single_image_per_class_cannot_be_held_back() -> None:
    with pytest.raises(DataError, match="one image in each class, so none can be held back: give --val_fraction 0"):
        held_back(index_of(1, 1, 1), 0.1, seed=0)

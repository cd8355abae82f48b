"""The data sets that a search may be of, one row each: what is known of their images, and what makes batches of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastdarts.inputs import arrays, files
from fastdarts.inputs.batches import Input
from fastdarts.inputs.images import ImageArrays, ImageFiles, Images
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD
from fastdarts.objectives.base import Colour

Statistics = tuple[Colour, Colour]  # mean and standard deviation of pixels in [0, 1]
CIFAR10 = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)  # DARTS'
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # P-DARTS'


@dataclass(frozen=True)
class DataSet:
    """A row.

    name        "imagenet" or "cifar": whose published numbers a method brings
    stem        of DARTS' network; NAS-Bench-201's takes images of the CIFAR stem only
    statistics  that pixels are normalised with, by the number of classes; None: with any other number
    sample      settings that take the place of published ones where the generated sample is searched: about two minutes
    notice      the first line of such a search
    images      chooses the images
    open_input  (settings, images, *, threads, saved, reserved, pictures, world) -> Input: makes batches of them
    forecast    (settings, images, reserved, world) -> what open_input would do, in words
    """

    name: Literal["imagenet", "cifar"]
    stem: Literal["imagenet", "cifar"]
    statistics: Mapping[int | None, Statistics]
    sample: Mapping[str, Any]
    notice: str
    images: type[Images]
    open_input: Callable[..., Input]
    forecast: Callable[..., str]

    def normalisation(self, num_classes: int) -> Statistics:
        """Of images in so many classes, one's own and the generated sample's too."""
        return self.statistics.get(num_classes, self.statistics[None])


IMAGENET = DataSet(
    name="imagenet",
    stem="imagenet",
    statistics={None: (IMAGENET_MEAN, IMAGENET_STD)},
    # one thread: operations on so few pixels gain nothing from a second one, which only waits where the cores are shared
    sample={
        "image_size": 64,
        "batch_size": 32,
        "train_fraction": 0.5,
        "val_fraction": 0.25,
        "epochs": 4,
        "begin": 1,
        "warmup_epochs": 1,
        "learning_rate": 0.1,
        "threads": 1,
    },
    notice="No --data: this searches a generated sample of textures and shapes, NOT ImageNet.",
    images=ImageFiles,
    open_input=files.open_input,
    forecast=files.forecast,
)
CIFAR = DataSet(
    name="cifar",
    stem="cifar",
    statistics={None: CIFAR10, 100: CIFAR100},
    # a smaller network; rates that are larger, since there are few steps; one thread, as above
    sample={
        "init_channels": 8,
        "layers": 5,
        "stage_cells": 1,
        "batch_size": 32,
        "epochs": 4,
        "learning_rate": 0.05,
        "arch_learning_rate": 6e-3,
        "threads": 1,
    },
    notice="No --data: this searches a generated sample of textures and shapes, NOT CIFAR.",
    images=ImageArrays,
    open_input=arrays.open_input,
    forecast=arrays.forecast,
)

"""Table of data sets, one row each: statistics of their images, and the functions that make their batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastdarts.inputs import arrays, files
from fastdarts.inputs.batches import Input
from fastdarts.inputs.images import ImageArrays, ImageFiles, Images
from fastdarts.inputs.statistics import CIFAR10, CIFAR100, IMAGENET_PIXELS, Statistics
from fastdarts.inputs.training import TestInput, TrainingArrays, TrainingFiles, TrainingImages, TrainingInput
from fastdarts.registry import STATISTICS


@dataclass(frozen=True)
class DataSet:
    """Row of the table.

    name        "imagenet" or "cifar": selects the published settings of a method
    stem        stem of DARTS' network; NAS-Bench-201's network takes only images of the CIFAR stem
    statistics  normalisation of pixels, by the number of classes; None: any other number
    sample      settings that replace published ones for a search on the generated sample: about two minutes
    notice      first line of such a search
    images      class that chooses a search's images
    open_input  (settings, images, *, threads, saved, reserved, pictures, world) -> Input: opens a search's loaders
    forecast    (settings, images, reserved, world) -> description of open_input's choices

    training           class that chooses a retraining's images
    open_training      (settings, images, *, threads, saved, reserved, world) -> TrainingInput
    forecast_training  (settings, images, reserved, world) -> description of open_training's choices
    open_test          (settings, *, threads, world, classes) -> TestInput: opens a pass over the test images alone
    """

    name: Literal["imagenet", "cifar"]
    stem: Literal["imagenet", "cifar"]
    statistics: Mapping[int | None, Statistics]
    sample: Mapping[str, Any]
    notice: str
    images: type[Images]
    open_input: Callable[..., Input]
    forecast: Callable[..., str]
    training: type[TrainingImages]
    open_training: Callable[..., TrainingInput]
    forecast_training: Callable[..., str]
    open_test: Callable[..., TestInput]

    def normalisation(self, num_classes: int) -> Statistics:
        """Return the statistics for this number of classes, also for user data and the generated sample."""
        return self.statistics.get(num_classes, self.statistics[None])


IMAGENET = DataSet(
    name="imagenet",
    stem="imagenet",
    statistics={None: IMAGENET_PIXELS},
    # one thread: operations on so few pixels do not benefit from a second one, which only waits on shared cores
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
    training=TrainingFiles,
    open_training=files.open_training,
    forecast_training=files.forecast_training,
    open_test=files.open_test,
)
CIFAR = DataSet(
    name="cifar",
    stem="cifar",
    statistics={None: CIFAR10, 100: CIFAR100},
    # a smaller network; larger rates, since there are few steps; one thread, as above
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
    training=TrainingArrays,
    open_training=arrays.open_training,
    forecast_training=arrays.forecast_training,
    open_test=arrays.open_test,
)
DATASETS: Mapping[str, DataSet] = {row.name: row for row in (CIFAR, IMAGENET)}


def statistics_of(name: str, dataset: DataSet, num_classes: int) -> Statistics:
    """Return the statistics of this name, a key of STATISTICS; "auto": those of the data set for this number of classes."""
    return STATISTICS[name] or dataset.normalisation(num_classes)

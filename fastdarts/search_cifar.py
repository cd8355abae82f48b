"""Architecture search on CIFAR-10, CIFAR-100 and other small images of one size: `python -m fastdarts.search_cifar`.

DARTS' settings, halves of the training images for weights and alpha, and MAE-NAS' masked reconstruction by default;
--objective supervised is DARTS as published. The test images are never read.
"""

import sys

from fastdarts.cli.command import Command
from fastdarts.inputs.arrays import ARRAYS
from fastdarts.settings import SearchCifarSettings

NOT_CIFAR = "No --data: this searches a generated sample of textures and shapes, NOT CIFAR."
# A search of two minutes, by a smaller network; rates that are larger, since there are few steps. One thread, as in
# search_imagenet's.
SAMPLE_RECIPE = {
    "init_channels": 8,
    "layers": 5,
    "stage_cells": 1,
    "batch_size": 32,
    "epochs": 4,
    "learning_rate": 0.05,
    "arch_learning_rate": 6e-3,
    "threads": 1,
}
COMMAND = Command("search_cifar", __doc__, SearchCifarSettings, ARRAYS, SAMPLE_RECIPE, NOT_CIFAR)
main, resolve = COMMAND.main, COMMAND.resolve


if __name__ == "__main__":
    sys.exit(main())

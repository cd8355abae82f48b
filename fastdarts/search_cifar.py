"""Architecture search on CIFAR-10, CIFAR-100 and other small images of one size: `python -m fastdarts.search_cifar`.

DARTS' settings, halves of the training images for weights and alpha, and MAE-NAS' masked reconstruction by default;
--objective supervised is DARTS as published. The test images are never read.
"""

import sys

from fastdarts.array_input import ARRAYS
from fastdarts.command import Command
from fastdarts.config import SearchCifarSettings

NOT_CIFAR = "No --data: this searches a generated sample of textures and shapes, NOT CIFAR."
# A search of two minutes, by a network and images that are smaller than CIFAR's. One thread, as search_imagenet's sample.
SAMPLE_RECIPE = {
    "image_size": 16,
    "patch_size": 2,
    "init_channels": 4,
    "layers": 5,
    "batch_size": 32,
    "epochs": 4,
    "threads": 1,
}
COMMAND = Command("search_cifar", __doc__, SearchCifarSettings, ARRAYS, SAMPLE_RECIPE, NOT_CIFAR)
main, resolve = COMMAND.main, COMMAND.resolve


if __name__ == "__main__":
    sys.exit(main())

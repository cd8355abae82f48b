"""Architecture search on ImageNet-layout JPEGs, label-free by default: `python -m fastdarts.search_imagenet`.

MAE-NAS with PC-DARTS' settings: masked reconstruction, partial channels, alpha on images of its own.
"""

import sys

from fastdarts.cli.command import Command
from fastdarts.inputs.files import FILES
from fastdarts.settings import SearchImagenetSettings

NOT_IMAGENET = "No --data: this searches a generated sample of textures and shapes, NOT ImageNet."
# A search of two minutes. One thread: operations on so few pixels gain nothing from a second one, which only waits where the
# cores are shared.
SAMPLE_RECIPE = {
    "image_size": 64,
    "batch_size": 32,
    "train_fraction": 0.5,
    "val_fraction": 0.25,
    "epochs": 4,
    "begin": 1,
    "warmup_epochs": 1,
    "learning_rate": 0.1,
    "threads": 1,
}
COMMAND = Command("search_imagenet", __doc__, SearchImagenetSettings, FILES, SAMPLE_RECIPE, NOT_IMAGENET)
main, resolve = COMMAND.main, COMMAND.resolve


if __name__ == "__main__":
    sys.exit(main())

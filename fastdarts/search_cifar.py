"""Architecture search on CIFAR-10, CIFAR-100 and other small images of one size: `python -m fastdarts.search_cifar`.

Defaults: DARTS' settings, half of the training images each for weights and alpha, and MAE-NAS' masked reconstruction.
--objective supervised is DARTS as published. Test images are never read.
"""

import sys

from fastdarts import retrain
from fastdarts.cli.command import Command
from fastdarts.cli.resolve_search import SearchResolver
from fastdarts.inputs.source import CIFAR
from fastdarts.runs.search import run
from fastdarts.settings import SearchCifarSettings

resolve = SearchResolver("search_cifar", SearchCifarSettings, CIFAR)
command = Command(resolve, run, __doc__, {"retrain": retrain.command})
main = command.main


if __name__ == "__main__":
    sys.exit(main())

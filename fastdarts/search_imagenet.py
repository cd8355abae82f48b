"""Architecture search on ImageNet-layout JPEGs, label-free by default: `python -m fastdarts.search_imagenet`.

MAE-NAS with PC-DARTS' settings: masked reconstruction, partial channels, alpha trained on a separate split.
"""

import sys

from fastdarts import retrain
from fastdarts.cli.command import Command
from fastdarts.cli.resolve_search import SearchResolver
from fastdarts.inputs.source import IMAGENET
from fastdarts.runs.search import run
from fastdarts.settings import SearchImagenetSettings

resolve = SearchResolver("search_imagenet", SearchImagenetSettings, IMAGENET)
command = Command(resolve, run, __doc__, {"retrain": retrain.command})
main = command.main


if __name__ == "__main__":
    sys.exit(main())

"""Train the network of a found cell: `python -m fastdarts.retrain --run RUN`, or `--genotype DARTS_V2 --data ROOT`.

Recipe, images and settings follow from the search --run; the defaults are DARTS' training on CIFAR-10. The accuracy of the
last epoch is the result; images held back by --val_fraction choose a best one. Test images choose nothing unless asked for.
"""

import sys

from fastdarts.cli.command import Command
from fastdarts.cli.resolve_retrain import RetrainResolver
from fastdarts.runs.retrain import run

resolve = RetrainResolver()
command = Command(resolve, run, __doc__)
main = command.main


if __name__ == "__main__":
    sys.exit(main())

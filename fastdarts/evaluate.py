"""Accuracy of a trained network on test images, also by class: `python -m fastdarts.evaluate RUN --data ROOT`.

RUN is the folder of a retraining, which names network and images; or a checkpoint, or a published one with --genotype.
"""

import sys

from fastdarts.cli.command import Command
from fastdarts.cli.resolve_evaluate import EvaluationResolver
from fastdarts.runs.evaluate import run

resolve = EvaluationResolver()
command = Command(resolve, run, __doc__, again="give the same command again")
main = command.main


if __name__ == "__main__":
    sys.exit(main())

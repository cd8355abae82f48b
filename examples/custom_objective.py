"""A custom objective: predict the mean colour of an image. A row of the registry makes it a value of --objective.

Next to this file: `python -m fastdarts.search_cifar --modules custom_objective --objective mean-colour`.
"""

import sys

import torch
from torch import Tensor, nn

import fastdarts
from fastdarts.batch import Batch
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD, Objective
from fastdarts.objectives.base import Weights
from fastdarts.objectives.table import Choices, Row
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.philox import Stream
from fastdarts.registry import OBJECTIVES
from fastdarts.supernet import Network


class MeanColour(Objective):
    """Squared error of a linear prediction of each image's mean colour, from the last feature."""

    needs_labels = False

    def __init__(self, supernet: Network) -> None:
        super().__init__()
        self.head = nn.Linear(supernet.tap_channels[-1], 3)

    def forward(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """Return a scalar; see Objective.forward."""
        x = normalise(batch.images, batch.flip, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        predicted = self.head(supernet(x, weights, step, stream)[-1].mean((2, 3)))
        return (predicted - x.mean((2, 3))).square().mean()

    def evaluate(self, supernet: Network, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """Return the loss alone."""
        step = torch.zeros(1, dtype=torch.int64, device=batch.index.device)
        return {"loss": self(supernet, weights, batch, step, Stream.EVAL)}


def make(choices: Choices) -> Objective:
    """From what a command was given."""
    return MeanColour(choices.supernet)


OBJECTIVES["mean-colour"] = Row("prediction of an image's mean colour", "Search by mean colour", make)

if __name__ == "__main__":
    save = sys.argv[1] if len(sys.argv) > 1 else "runs/example-objective"
    found = fastdarts.search(command="search_cifar", objective="mean-colour", save=save, epochs=2)
    print(found.genotype)

"""Evaluation of a classifier: loss, top-1 and top-5 accuracy over all images of all ranks, also by class."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.networks import DiscreteNetwork
from fastdarts.optim import Precision, seeded
from fastdarts.protocols import Ranks
from fastdarts.training.augment import Prepare


class Scores(NamedTuple):
    """Result of an evaluation.

    loss        mean cross entropy
    top1, top5  accuracy in [0, 1]; top5 = 1 for five classes or fewer
    images      number of images
    by_class    (correct by top-1, images) of each class
    """

    loss: float
    top1: float
    top5: float
    images: int
    by_class: list[tuple[int, int]]

    def figures(self) -> dict[str, float]:
        """Return loss, top1 and top5 by name."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5}


@torch.no_grad()
def evaluate(
    network: DiscreteNetwork,
    prepare: Prepare,
    batches: Iterable[Batch],
    num_classes: int,
    *,
    precision: Precision,
    ranks: Ranks | None = None,
) -> Scores:
    """Return the scores of `network` over `batches`; leaves it in evaluation mode and torch's generators unchanged.

    Raises ValueError for no images at all.
    """
    network.eval()
    parameter = next(network.parameters())
    device = parameter.device
    # columns: images, correct by top-1, correct by top-5, sum of the losses
    table = torch.zeros(num_classes, 4, dtype=torch.float64, device=device)
    with seeded(device):
        for batch in batches:
            batch = batch.to(device)
            with precision.autocast():
                logits = network(prepare.evaluate(batch, parameter.dtype)).logits.to(parameter.dtype)
            table.index_add_(0, batch.labels, _rows(logits, batch.labels))
    if ranks is not None:
        ranks.average(table)
        table *= ranks.size
    counts, loss = table[:, :3].round().long(), float(table[:, 3].sum())
    images, top1, top5 = counts.sum(0).tolist()
    if not images:
        raise ValueError("there are no images to evaluate on")
    by_class = [(correct, of) for of, correct, _ in counts.tolist()]
    return Scores(loss / images, top1 / images, top5 / images, images, by_class)


def _rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the rows to add to the table, float64 (N, 4)."""
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    return torch.stack([torch.ones_like(losses), hits[:, 0].double(), hits.any(1).double(), losses], 1)

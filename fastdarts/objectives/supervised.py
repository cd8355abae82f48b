"""Supervised classification: DARTS' objective."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Objective, Weights
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.philox import Stream
from fastdarts.supernet import Supernet


class Classification(Objective):
    """Cross entropy of a linear classifier on the globally averaged last feature.

    The classifier is made here and lives in the supernet under DARTS' name (`classifier`), so that the supernet's
    state_dict is the customary one. Raises ValueError for fewer than two classes.
    """

    needs_labels = True

    def __init__(
        self,
        supernet: Supernet,
        num_classes: int,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"classification needs at least two classes, got {num_classes}")
        supernet.attach_classifier(num_classes)
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, supernet: Supernet, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """The mean cross entropy (see Objective.forward)."""
        return F.cross_entropy(self._logits(supernet, weights, batch, step, stream), batch.labels)

    def evaluate(self, supernet: Supernet, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """`loss` (cross entropy), `top1` and `top5` accuracy in [0, 1] (top5 = 1 for five classes or fewer)."""
        step = torch.zeros(1, dtype=torch.int64, device=batch.index.device)
        logits = self._logits(supernet, weights, batch, step, Stream.EVAL)
        hits = logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        return {
            "loss": F.cross_entropy(logits, batch.labels),
            "top1": hits[:, 0].float().mean(),
            "top5": hits.any(1).float().mean(),
        }

    def _logits(self, supernet: Supernet, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        dtype = supernet.classifier.weight.dtype
        x = normalise(batch.images, batch.flip, mean=self.mean, std=self.std, dtype=dtype)
        return supernet.classifier(supernet(x, weights, step, stream)[-1].mean((2, 3))).to(dtype)

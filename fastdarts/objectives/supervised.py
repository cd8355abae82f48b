"""Supervised classification: DARTS' objective."""

import torch.nn.functional as F
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Colour, Objective, Weights, first_step
from fastdarts.objectives.head import attach, class_logits, classifier_of, figures
from fastdarts.objectives.masking import Masking
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.philox import Stream
from fastdarts.supernet import Network


class Classification(Objective):
    """Cross entropy of a linear classifier on the globally averaged last feature.

    masking  hides patches of the input behind the mean colour (MIM-DARTS, table 7, "Cls." with "mask"); None: whole images,
             normalised by mean and std

    The classifier is made here and lives in the supernet under DARTS' name (`classifier`), so that the supernet's
    state_dict is the customary one. Raises ValueError for fewer than two classes.
    """

    needs_labels = True

    def __init__(
        self,
        supernet: Network,
        num_classes: int,
        *,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        attach(supernet, num_classes)
        self.mean, self.std, self.masking = mean, std, masking

    def forward(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """The mean cross entropy (see Objective.forward)."""
        return F.cross_entropy(self._logits(supernet, weights, batch, step, stream), batch.labels)

    def evaluate(self, supernet: Network, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """`loss` (cross entropy), `top1` and `top5` accuracy in [0, 1] (top5 = 1 for five classes or fewer)."""
        return figures(self._logits(supernet, weights, batch, first_step(batch), Stream.EVAL), batch.labels)

    def _logits(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        parameter = classifier_of(supernet).weight
        if self.masking is None:
            x = normalise(batch.images, batch.flip, mean=self.mean, std=self.std, dtype=parameter.dtype)
        else:
            x, _ = self.masking(batch, step, stream, parameter.new_zeros(3))
        return class_logits(supernet, supernet(x, weights, step, stream)[-1].mean((2, 3)))

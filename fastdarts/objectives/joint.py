"""MIM-DARTS: classification and masked reconstruction from one encoding.

Source: "alpha DARTS Once More: Enhancing Differentiable Architecture Search by Masked Image Modeling".

Notation: N images, S pixels a side, p pixels a patch's side, C channels of the last feature.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Colour, Reconstructing, Weights, first_step, full_precision
from fastdarts.objectives.decoders import MimDecoder
from fastdarts.objectives.head import attach, class_logits, figures
from fastdarts.objectives.masking import Masking, visible_colour
from fastdarts.ops.masked_loss import masked_loss, pixel_mask
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.philox import Stream
from fastdarts.ops.sync import Sync
from fastdarts.supernet import Network

HALF = (0.5, 0.5, 0.5)  # mean and std that map pixels of [0, 1] to targets in [-1, 1], HardTanh's range


class Encoded(NamedTuple):
    """Inputs of both losses."""

    feature: Tensor  # (N, C, h, w)
    prediction: Tensor  # (N, 3, S, S) in [-1, 1], of the parameters' dtype
    mask: Tensor  # bool (N, S/p, S/p), True where the error counts
    x: Tensor  # (N, 3, S, S), the supernet's input


class Joint(Reconstructing):
    """L = L_cls + lambda L_mse (Eq. 7), lambda = L_cls / L_mse: both terms have equal weight, whatever their units.

    num_classes  None: reconstruction alone, L = L_mse, labels are not read
    masking      which patches of the input are hidden (by zeros, after normalising); the squared error covers hidden pixels
                 only. None: whole images, and the error covers all pixels
    mean, std    of pixels in [0, 1], to normalise whole images
    backend      of ops.masked_loss

    The supernet holds the classifier (see Classification). Rows of Table 7 with `masking`: "Cls. Rec. mask" with classes, "Rec.
    mask" without; without masking and classes, "Rec.". Raises ValueError for fewer than two classes.
    """

    def __init__(
        self,
        supernet: Network,
        num_classes: int | None,
        *,
        masking: Masking | None,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.needs_labels = num_classes is not None
        if num_classes is not None:
            attach(supernet, num_classes)
        self.masking, self.backend = masking, backend
        self.mean, self.std = (mean, std) if masking is None else (masking.mean, masking.std)
        self.decoder = MimDecoder(supernet.tap_channels[-1], supernet.multiple)

    def forward(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """Return L_cls + lambda L_mse, or L_mse (see Objective.forward).

        If ranks share a batch, each computes lambda on its own images; with synchronised BatchNorm lambda covers all images.
        """
        seen = self._encode(supernet, weights, batch, step, stream)
        mse = self._mse(seen.prediction, seen.mask, batch)
        if not self.needs_labels:
            return mse
        cls = F.cross_entropy(class_logits(supernet, seen.feature.mean((2, 3))), batch.labels)
        return cls + balance(cls, mse, supernet.sync) * mse

    def evaluate(self, supernet: Network, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`; with labels also `cls_loss`, `mse`, `lambda`, `top1` and `top5`.

        Without labels, under a mask, also `baseline`: the loss of predicting each image's mean visible colour.
        """
        seen = self._encode(supernet, weights, batch, first_step(batch), Stream.EVAL)
        mse = self._mse(seen.prediction, seen.mask, batch)
        if self.needs_labels:
            found = figures(class_logits(supernet, seen.feature.mean((2, 3))), batch.labels)
            cls = found.pop("loss")
            ratio = balance(cls, mse)
            return {"loss": cls + ratio * mse, "cls_loss": cls, "mse": mse, "lambda": ratio, **found}
        if self.masking is None:
            return {"loss": mse}
        whole = normalise(batch.images, batch.flip, mean=HALF, std=HALF, dtype=seen.prediction.dtype)
        colour = visible_colour(whole, pixel_mask(seen.mask, self.masking.patch_size))
        return {"loss": mse, "baseline": self._mse(colour, seen.mask, batch)}

    def reconstruct(self, supernet: Network, weights: Weights, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return input, reconstructed (visible patches kept) and original images (see Reconstructing.reconstruct)."""
        seen = self._encode(supernet, weights, batch, first_step(batch), Stream.EVAL)
        x, S = seen.x, seen.x.shape[2]
        original = normalise(batch.images, batch.flip, mean=(0, 0, 0), std=(1, 1, 1), dtype=x.dtype)
        hidden = pixel_mask(seen.mask, S // seen.mask.shape[1])
        reconstructed = torch.where(hidden, seen.prediction / 2 + 0.5, original)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return x * std + mean, reconstructed, original

    def _encode(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Encoded:
        parameter = self.decoder.colours.weight
        if self.masking is None:
            x = normalise(batch.images, batch.flip, mean=self.mean, std=self.std, dtype=parameter.dtype)
            mask = torch.ones(len(x), 1, 1, dtype=torch.bool, device=x.device)  # one patch, the whole image
        else:
            x, mask = self.masking(batch, step, stream, parameter.new_zeros(3))
        feature = supernet(x, weights, step, stream)[-1]
        # the supernet's mode decides for both BatchNorms: batch statistics, or running ones
        painted = self.decoder(feature, (x.shape[2], x.shape[3]), training=supernet.training, sync=supernet.sync)
        return Encoded(feature, painted.to(parameter.dtype), mask, x)

    def _mse(self, prediction: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """Return Eq. 6 as a mean over the masked pixels' colours."""
        with full_precision(prediction.device):
            return masked_loss(
                [prediction],
                prediction.new_zeros(3),
                batch.images,
                batch.flip,
                mask,
                mean=HALF,
                std=HALF,
                norm="l2",
                backend=self.backend,
            )


def balance(cls: Tensor, mse: Tensor, sync: Sync | None = None) -> Tensor:
    """Return lambda = L_cls / L_mse as a constant, outside the gradient (MIM-DARTS, section 3.2); 0 if it is not finite.

    cls, mse: scalars; with `sync`, their sums over the ranks are used.
    """
    sums = torch.stack([cls.detach(), mse.detach().to(cls.dtype)])
    if sync is not None:
        sync.sum(sums)
    ratio = sums[0] / sums[1]
    return torch.where(ratio.isfinite(), ratio, 0)

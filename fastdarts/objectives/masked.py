"""MAE-NAS: masked reconstruction through a multi-scale decoder ("Masked Autoencoders Are Robust NAS Learners").

Letters: N images, S pixels a side, p pixels a patch's side, F_l the feature of stage l (C_l channels), D decoder width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Objective, Weights, full_precision
from fastdarts.ops.masked_loss import Norm, masked_loss, pixel_mask, upsampled_sum
from fastdarts.ops.patch_mask import normalise, num_masked, patch_mask
from fastdarts.ops.philox import Stream
from fastdarts.supernet import Supernet


class MultiScaleDecoder(nn.Module):
    """Eq. 3: Linear(sum_l Upsample(Conv_l(F_l))), l = 1..3, with 1x1 convolutions to D channels and a linear layer to RGB.

    Everything after F_l is linear, so the two matrices of a level are multiplied first and the upsampling carries 3
    channels instead of D.
    """

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.align = nn.ModuleList(nn.Conv2d(C, width, 1) for C in channels)
        self.linear = nn.Linear(width, 3)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """F_l (N, C_l, h_l, w_l) -> levels (N, 3, h_l, w_l) and a bias (3,): the prediction is their upsampled sum."""
        W = self.linear.weight
        levels = [
            F.linear(feature.permute(0, 2, 3, 1), W @ conv.weight.flatten(1)).permute(0, 3, 1, 2)
            for conv, feature in zip(self.align, features, strict=True)
        ]
        return levels, W @ sum(conv.bias for conv in self.align) + self.linear.bias


class MaskedReconstruction(Objective):
    """Hide patches of each image, reconstruct them from the rest; the loss is on hidden pixels only.

    tap_channels  channels of the supernet's features (Supernet.tap_channels)
    mask_ratio    in (0, 1); floor(mask_ratio * patches + 0.5) patches of each image are hidden
    patch_size    p; must divide S
    mask_token    what hidden pixels are set to: "zero" (the mean colour) or a "learned" colour
    norm          "l1" or "l2", on normalised pixels
    seed          of the masks: fresh for each image, step and stream
    backend       of ops.patch_mask and ops.masked_loss
    """

    needs_labels = False

    def __init__(
        self,
        tap_channels: Sequence[int],
        *,
        mask_ratio: float = 0.5,
        patch_size: int = 8,
        mask_token: Literal["zero", "learned"] = "zero",
        norm: Norm = "l1",
        seed: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.mask_ratio, self.patch_size, self.norm = mask_ratio, patch_size, norm
        self.seed, self.mean, self.std, self.backend = seed, tuple(mean), tuple(std), backend
        self.decoder = MultiScaleDecoder(tap_channels)
        if mask_token == "learned":
            self.mask_token = nn.Parameter(torch.zeros(3))
        else:
            self.register_buffer("mask_token", torch.zeros(3), persistent=False)

    def forward(self, supernet: Supernet, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """The mean reconstruction error of the hidden pixels (see Objective.forward)."""
        levels, bias, mask, _ = self._predict(supernet, weights, batch, step, stream)
        return self._loss(levels, bias, batch, mask)

    def evaluate(self, supernet: Supernet, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and `baseline`: the loss of predicting each image's mean visible colour (0 where nothing is visible)."""
        step = torch.zeros(1, dtype=torch.int64, device=batch.index.device)
        levels, bias, mask, x = self._predict(supernet, weights, batch, step, Stream.EVAL)
        visible = ~pixel_mask(mask, self.patch_size)
        colour = (x * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)
        return {
            "loss": self._loss(levels, bias, batch, mask),
            "baseline": self._loss([colour], torch.zeros_like(bias), batch, mask),
        }

    def reconstruct(self, supernet: Supernet, weights: Weights, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What a person looks at: masked, reconstructed (visible patches kept) and original images.

        Each float (N, 3, S, S) of pixels in [0, 1], not clamped; the masks are those of `evaluate`.
        """
        step = torch.zeros(1, dtype=torch.int64, device=batch.index.device)
        levels, bias, mask, x = self._predict(supernet, weights, batch, step, Stream.EVAL)
        original = normalise(batch.images, batch.flip, mean=self.mean, std=self.std, dtype=x.dtype)
        prediction = upsampled_sum(levels, bias, (x.shape[2], x.shape[3]))
        reconstructed = torch.where(pixel_mask(mask, self.patch_size), prediction, original)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return x * std + mean, reconstructed * std + mean, original * std + mean

    def _predict(
        self, supernet: Supernet, weights: Weights, batch: Batch, step: Tensor, stream: int
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Returns the decoder's levels and bias, the mask and the masked input."""
        H, W = batch.images.shape[1:3]
        patches = (H // self.patch_size) * (W // self.patch_size)
        if not (hidden := num_masked(self.mask_ratio, patches)):
            raise ValueError(f"mask_ratio {self.mask_ratio} hides none of an image's {patches} patches")
        x, mask = patch_mask(
            batch.images,
            batch.index,
            step,
            batch.flip,
            self.mask_token,
            seed=self.seed,
            stream=stream,
            patch_size=self.patch_size,
            num_masked=hidden,
            mean=self.mean,
            std=self.std,
            dtype=self.mask_token.dtype,
            backend=self.backend,
        )
        return *self.decoder(supernet(x, weights, step, stream)), mask, x

    def _loss(self, levels: Sequence[Tensor], bias: Tensor, batch: Batch, mask: Tensor) -> Tensor:
        dtype = self.mask_token.dtype
        with full_precision(bias.device):
            return masked_loss(
                [level.to(dtype) for level in levels],
                bias.to(dtype),
                batch.images,
                batch.flip,
                mask,
                mean=self.mean,
                std=self.std,
                norm=self.norm,
                backend=self.backend,
            )

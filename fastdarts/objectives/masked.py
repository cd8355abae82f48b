"""MAE-NAS: masked reconstruction ("Masked Autoencoders Are Robust NAS Learners").

Notation: N images, S pixels a side, p pixels a patch's side.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Colour, Reconstructing, Weights, first_step, full_precision
from fastdarts.objectives.decoders import MultiScaleDecoder, SingleScaleDecoder
from fastdarts.objectives.masking import Masking, visible_colour
from fastdarts.ops.masked_loss import Norm, masked_loss, pixel_mask, upsampled_sum
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.philox import Stream
from fastdarts.supernet import Network

DecoderName = Literal["multi-scale", "single-scale"]
DECODERS = {"multi-scale": MultiScaleDecoder, "single-scale": SingleScaleDecoder}


class MaskedReconstruction(Reconstructing):
    """Hide patches of each image and reconstruct them from the rest; the loss covers hidden pixels only.

    tap_channels  channels of the supernet's features (Supernet.tap_channels)
    mask_ratio    in (0, 1); floor(mask_ratio * patches + 0.5) patches of each image are hidden
    patch_size    p; must divide S
    mask_token    value of hidden pixels: "zero" (the mean colour) or a "learned" colour
    norm          "l1" or "l2", on normalised pixels
    decoder       "multi-scale", or "single-scale", which reads the last feature only
    seed          of the masks: fresh for each image, step and stream
    backend       of ops.patch_mask and ops.masked_loss

    Raises ValueError for an unknown decoder.
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
        decoder: DecoderName = "multi-scale",
        seed: int = 0,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ValueError(f"unknown decoder {decoder!r}; known are {', '.join(DECODERS)}")
        self.norm, self.mean, self.std, self.backend = norm, mean, std, backend
        self.masking = Masking(mask_ratio, patch_size, seed, mean, std, backend)
        self.decoder = DECODERS[decoder](tap_channels)
        if mask_token == "learned":
            self.mask_token = nn.Parameter(torch.zeros(3))
        else:
            self.register_buffer("mask_token", torch.zeros(3), persistent=False)

    def forward(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """Return the mean reconstruction error of the hidden pixels (see Objective.forward)."""
        levels, bias, mask, _ = self._predict(supernet, weights, batch, step, stream)
        return self._loss(levels, bias, batch, mask)

    def evaluate(self, supernet: Network, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, and `baseline`: the loss of predicting each image's mean visible colour (0 if nothing is visible)."""
        levels, bias, mask, x = self._predict(supernet, weights, batch, first_step(batch), Stream.EVAL)
        colour = visible_colour(x, pixel_mask(mask, self.masking.patch_size))
        return {
            "loss": self._loss(levels, bias, batch, mask),
            "baseline": self._loss([colour], torch.zeros_like(bias), batch, mask),
        }

    def reconstruct(self, supernet: Network, weights: Weights, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return masked, reconstructed (visible patches kept) and original images (see Reconstructing.reconstruct)."""
        levels, bias, mask, x = self._predict(supernet, weights, batch, first_step(batch), Stream.EVAL)
        original = normalise(batch.images, batch.flip, mean=self.mean, std=self.std, dtype=x.dtype)
        prediction = upsampled_sum(levels, bias, (x.shape[2], x.shape[3]))
        reconstructed = torch.where(pixel_mask(mask, self.masking.patch_size), prediction, original)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return x * std + mean, reconstructed * std + mean, original * std + mean

    def _predict(
        self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Return the decoder's levels and bias, the mask and the masked input."""
        x, mask = self.masking(batch, step, stream, self.mask_token)
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

"""From the supernet's features back to an image.

Notation: N images, S pixels a side, F_l the feature of stage l (C_l channels, h_l pixels a side), D decoder width.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.ops.batch_norm import batch_norm
from fastdarts.ops.sync import Sync


class MultiScaleDecoder(nn.Module):
    """MAE-NAS, Eq. 3: Linear(sum_l Upsample(Conv_l(F_l))), l = 1..3: 1x1 convolutions to D channels, a linear layer to RGB.

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
        align: Any = self.align
        levels = [
            F.linear(feature.permute(0, 2, 3, 1), W @ conv.weight.flatten(1)).permute(0, 3, 1, 2)
            for conv, feature in zip(align, features, strict=True)
        ]
        bias: Any = sum(conv.bias for conv in align)
        return levels, W @ bias + self.linear.bias


class SingleScaleDecoder(MultiScaleDecoder):
    """MAE-NAS without the multi-scale decoder: Linear(Upsample(Conv(F_3))), of the last feature only."""

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        super().__init__(channels[-1:], width)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """F_l (N, C_l, h_l, w_l) -> one level (N, 3, h_3, w_3) and a bias (3,) (see MultiScaleDecoder.forward)."""
        return super().forward(features[-1:])


class MimDecoder(nn.Module):
    """MIM-DARTS' decoder of the last feature (section 3.2), after the context encoder's.

    A 3x3 convolution spreads the information over the pixels, a 1x1 convolution over the channels; two transposed
    convolutions enlarge, each after a learned filter (a 3x3 convolution), BatchNorm and ReLU; a 3x3 convolution gives the
    colours, HardTanh clips them to [-1, 1].

    channels  of the last feature
    factor    image / feature; the two strides share it as powers of two (4 = 2 x 2, 32 = 8 x 4), and what is left of it a
              bilinear resize makes up for
    width     D, of everything in between; the paper gives none
    """

    def __init__(self, channels: int, factor: int, width: int = 64) -> None:
        super().__init__()
        power = factor.bit_length() - 1
        strides = 2 ** (power - power // 2), 2 ** (power // 2)
        D = width
        self.spatial = nn.Conv2d(channels, D, 3, padding=1)
        self.mixing = nn.Conv2d(D, D, 1)
        self.filters = nn.ModuleList(nn.Conv2d(D, D, 3, padding=1, bias=False) for _ in strides)
        self.norms = nn.ModuleList(nn.BatchNorm2d(D) for _ in strides)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(D, D, s + 2, stride=s, padding=1) for s in strides)
        self.colours = nn.Conv2d(D, 3, 3, padding=1)

    def forward(self, feature: Tensor, size: tuple[int, int], *, training: bool, sync: Sync | None = None) -> Tensor:
        """(N, C, h, w) -> (N, 3, *size), colours in [-1, 1].

        training: BatchNorm takes batch statistics and moves the running ones; with `sync`, those of all ranks.
        """
        x = self.mixing(self.spatial(feature))
        layers: Any = zip(self.filters, self.norms, self.enlarge, strict=True)
        for convolution, norm, enlarge in layers:
            if training:
                norm.num_batches_tracked.add_(1)
            running = norm.running_mean, norm.running_var
            y = batch_norm(convolution(x), running, training, norm.momentum, norm.eps, sync, norm.weight, norm.bias)
            x = enlarge(F.relu(y))
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return F.hardtanh(self.colours(x))

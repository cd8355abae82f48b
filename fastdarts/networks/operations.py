"""The operations of a discrete cell as modules, under the parameter names of DARTS' and NAS-Bench-201's codebases.

Convolutions have no bias, BatchNorm is affine, pools have none after them. Notation: N images, C channels, H W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.ops.batch_norm import batch_norm
from fastdarts.ops.relu_conv_bn import halving_convolution
from fastdarts.ops.sync import Sync
from fastdarts.supernet.eager_candidates import BUILDERS, Noise

Parts = tuple[list[Any], Any]  # of a preprocess layer: one convolution or two halving ones, and its BatchNorm
Build = Callable[[int, int], nn.Module]  # channels, stride -> (N, C, H, W) to (N, C, H/stride, W/stride)


class BatchNorm(nn.BatchNorm2d):
    """torch's, over the images of all ranks while `sync` is set."""

    sync: Sync | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.sync is None or not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        running, momentum = (self.running_mean, self.running_var), self.momentum or 0.0
        return batch_norm(input, running, True, momentum, self.eps, self.sync, self.weight, self.bias)


class Layers(nn.Module):
    """Layers one after another, named `op.0`, `op.1`, ..."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        return self.op(x)


class ReLUConvBN(Layers):
    """ReLU, convolution, BN: (N, C_in, H, W) -> (N, C_out, H/stride, W/stride)."""

    def __init__(self, C_in: int, C_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(C_in, C_out, kernel, stride, kernel // 2, bias=False), BatchNorm(C_out))

    def parts(self) -> Parts:
        """Return the convolution, and the BatchNorm."""
        return [self.op[1]], self.op[2]


class SepConv(Layers):
    """Twice ReLU, depthwise convolution, 1x1 convolution, BN; the first of the stride."""

    def __init__(self, C: int, kernel: int, stride: int) -> None:
        super().__init__(*separable(C, kernel, stride), *separable(C, kernel, 1))


class DilConv(Layers):
    """ReLU, depthwise convolution of dilation 2, 1x1 convolution, BN."""

    def __init__(self, C: int, kernel: int, stride: int) -> None:
        super().__init__(*separable(C, kernel, stride, dilation=2))


def separable(C: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """Return ReLU, depthwise convolution, 1x1 convolution, BN."""
    pad = dilation * (kernel // 2)
    depthwise = nn.Conv2d(C, C, kernel, stride, pad, dilation, groups=C, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(C, C, 1, bias=False), BatchNorm(C)]


class HalvingConv(nn.Conv2d):
    """1x1 convolution of every second pixel from pixel (offset, offset) on: (N, C_in, H, W) -> (N, C_out, H/2, W/2)."""

    def __init__(self, C_in: int, C_out: int, offset: int) -> None:
        super().__init__(C_in, C_out, 1, stride=2, bias=False)
        self.offset = offset

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return halving_convolution(input, self.weight, self.offset)


class FactorizedReduce(nn.Module):
    """Halve H and W: ReLU, two 1x1 convolutions of every second pixel, one of them offset by a pixel, concat, BN.

    (N, C_in, H, W) -> (N, C_out, H/2, W/2), H, W and C_out even.
    """

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = HalvingConv(C_in, C_out // 2, 0)
        self.conv_2 = HalvingConv(C_in, C_out // 2, 1)
        self.bn = BatchNorm(C_out)

    def parts(self) -> Parts:
        """Return the two convolutions, and the BatchNorm."""
        return [self.conv_1, self.conv_2], self.bn

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x)], dim=1))


class Zero(nn.Module):
    """Zeros of the output's shape, with a gradient of zeros."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H/stride, W/stride)."""
        return x[:, :, :: self.stride, :: self.stride] * 0.0


def _skip(C: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(C, C)


def _max_pool(C: int, stride: int) -> nn.Module:
    return nn.MaxPool2d(3, stride, padding=1)


def _average_pool(C: int, stride: int) -> nn.Module:
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def _conv_7x1_1x7(C: int, stride: int) -> nn.Module:
    horizontal = nn.Conv2d(C, C, (1, 7), (1, stride), (0, 3), bias=False)
    return nn.Sequential(nn.ReLU(), horizontal, nn.Conv2d(C, C, (7, 1), (stride, 1), (3, 0), bias=False), BatchNorm(C))


OPERATIONS: dict[str, Build] = {
    "none": Zero,
    "max_pool_3x3": _max_pool,
    "avg_pool_3x3": _average_pool,
    "skip_connect": _skip,
    "sep_conv_3x3": lambda C, stride: SepConv(C, 3, stride),
    "sep_conv_5x5": lambda C, stride: SepConv(C, 5, stride),
    "sep_conv_7x7": lambda C, stride: SepConv(C, 7, stride),
    "dil_conv_3x3": lambda C, stride: DilConv(C, 3, stride),
    "dil_conv_5x5": lambda C, stride: DilConv(C, 5, stride),
    "conv_7x1_1x7": _conv_7x1_1x7,
    "nor_conv_1x1": lambda C, stride: ReLUConvBN(C, C, 1, stride),
    "nor_conv_3x3": lambda C, stride: ReLUConvBN(C, C, 3, stride),
    "noise": Noise,
}


def operation(name: str, C: int, stride: int) -> nn.Module:
    """Return the module of an operation, also of a registered candidate: (N, C, H, W) -> (N, C, H/stride, W/stride).

    Raises ValueError for an unknown name.
    """
    build = OPERATIONS.get(name) or BUILDERS.get(name)
    if build is None:
        raise ValueError(f"unknown operation {name!r}; known are {', '.join(dict.fromkeys([*OPERATIONS, *BUILDERS]))}")
    return build(C, stride)

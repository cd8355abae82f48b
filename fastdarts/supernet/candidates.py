"""What each candidate computes: plain PyTorch modules whose parameter names are those of DARTS' codebases.

Letters: N images, C channels, H W pixels, s stride (1 or 2). Each maps (N, C, H, W) to (N, C, H/s, W/s).
No convolution has a bias; every BatchNorm is without affine parameters (eps 1e-5, momentum 0.1, running statistics).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def batch_norm(C: int) -> nn.BatchNorm2d:
    """The search's BatchNorm: no affine parameters."""
    return nn.BatchNorm2d(C, affine=False)


class Zero(nn.Module):
    """`none`: the input (every other pixel of it under stride 2) times zero."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """Halve H and W without losing pixels: ReLU, two stride-2 1x1 convolutions, the second one pixel on, concat, BN."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        if C_out % 2:
            raise ValueError(f"FactorizedReduce halves its output channels between two convolutions: {C_out} is odd")
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = batch_norm(C_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, BN: a cell's preprocess layer."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), batch_norm(C_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def _depthwise_separable(C: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(C, C, kernel, stride, padding, dilation, groups=C, bias=False),
        nn.Conv2d(C, C, 1, bias=False),
        batch_norm(C),
    ]


class DilConv(nn.Module):
    """ReLU, depthwise convolution of dilation 2, 1x1 convolution, BN."""

    def __init__(self, C: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(*_depthwise_separable(C, kernel, stride, dilation=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SepConv(nn.Module):
    """Twice ReLU, depthwise convolution, 1x1 convolution, BN; only the first strides."""

    def __init__(self, C: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            *_depthwise_separable(C, kernel, stride, dilation=1), *_depthwise_separable(C, kernel, 1, dilation=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def _max_pool(C: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(3, stride, padding=1), batch_norm(C))


def _avg_pool(C: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), batch_norm(C))


def _skip(C: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(C, C)


BUILD: dict[str, Callable[[int, int], nn.Module]] = {  # name -> (C, stride) -> module
    "none": lambda C, stride: Zero(stride),
    "max_pool_3x3": _max_pool,
    "avg_pool_3x3": _avg_pool,
    "skip_connect": _skip,
    "sep_conv_3x3": lambda C, stride: SepConv(C, 3, stride),
    "sep_conv_5x5": lambda C, stride: SepConv(C, 5, stride),
    "dil_conv_3x3": lambda C, stride: DilConv(C, 3, stride),
    "dil_conv_5x5": lambda C, stride: DilConv(C, 5, stride),
}

"""The candidates of DARTS and its descendants, each layer in the forms that the codebases give it.

What they compute is in one place here; how a codebase wraps them differs on purpose: `.op` or `.net`, flat or nested, a pool
beside its BatchNorm or a module that holds both, FactorizedReduce by a slice or by padding.

Notation: C channels, k kernel size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


def batch_norm(C: int) -> nn.BatchNorm2d:
    """As in every search network: no affine parameters, running statistics kept."""
    return nn.BatchNorm2d(C, affine=False)


def convolution(
    C_in: int, C_out: int, k: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(C_in, C_out, k, stride, padding, dilation, groups, bias=False)


def separable(C: int, k: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise convolution, 1x1 convolution, BatchNorm; the image keeps its size at stride 1."""
    depthwise = convolution(C, C, k, stride, dilation * (k // 2), dilation, groups=C)
    return [nn.ReLU(inplace=False), depthwise, convolution(C, C, 1), batch_norm(C)]


class ReLUConvBN(nn.Module):
    def __init__(self, C_in: int, C_out: int, k: int = 1, track: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(C_out, affine=False, track_running_stats=track)
        self.op = nn.Sequential(nn.ReLU(inplace=False), convolution(C_in, C_out, k, padding=k // 2), norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DilConv(nn.Module):
    def __init__(self, C: int, k: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(*separable(C, k, stride, dilation=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SepConv(nn.Module):
    def __init__(self, C: int, k: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(*separable(C, k, stride), *separable(C, k, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class NestedDilConv(nn.Module):
    """`.net`, and a dilation that may be 1: half a separable convolution (pt.darts)."""

    def __init__(self, C: int, k: int, stride: int, dilation: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(*separable(C, k, stride, dilation))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class NestedSepConv(nn.Module):
    """Two halves, each a module of its own (pt.darts)."""

    def __init__(self, C: int, k: int, stride: int) -> None:
        super().__init__()
        self.net = nn.Sequential(NestedDilConv(C, k, stride, 1), NestedDilConv(C, k, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SequentialDilConv(nn.Sequential):
    """The layers themselves are the children: no `.op` in the parameters' names (NNI)."""

    def __init__(self, C: int, k: int, stride: int, dilation: int = 2) -> None:
        super().__init__(*separable(C, k, stride, dilation))


class SequentialSepConv(nn.Sequential):
    def __init__(self, C: int, k: int, stride: int) -> None:
        super().__init__(SequentialDilConv(C, k, stride, 1), SequentialDilConv(C, k, 1, 1))


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = convolution(C_in, C_out // 2, 1, stride=2)
        self.conv_2 = convolution(C_in, C_out // 2, 1, stride=2)
        self.bn = batch_norm(C_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class PaddedFactorizedReduce(nn.Module):
    """Pads below and to the right before the shift: odd images pass too, even ones give the same (NNI, AutoDL)."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.convs = nn.ModuleList(convolution(C_in, C_out // 2, 1, stride=2) for _ in range(2))
        self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)
        self.bn = batch_norm(C_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.convs[0](x), self.convs[1](self.pad(x)[:, :, 1:, 1:])], dim=1))


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(nn.Module):
    """Zeros that still depend on x."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class DetachedZero(Zero):
    """New zeros: no gradient goes to x, not even a zero one (P-DARTS)."""

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        return x.new_zeros(N, C, H // self.stride, W // self.stride)


class Noise(nn.Module):
    """N(0, 1) of the output's shape, drawn in every forward (the space S4 of R-DARTS)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


def pool(primitive: str, stride: int) -> nn.Module:
    if primitive == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, padding=1)
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


class PoolBN(nn.Module):
    """A pool that contains its BatchNorm (DrNAS, NNI, pt.darts)."""

    def __init__(self, primitive: str, C: int, stride: int) -> None:
        super().__init__()
        self.pool = pool(primitive, stride)
        self.bn = batch_norm(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))


Build = Callable[[int, int], nn.Module]  # (C, stride) -> a candidate
POOLS = ("max_pool_3x3", "avg_pool_3x3")


def pool_then_bn(primitive: str, C: int, stride: int) -> nn.Sequential:
    """As DARTS' mixed op wraps its pools."""
    return nn.Sequential(pool(primitive, stride), batch_norm(C))


def table(sep: Callable[..., nn.Module], dil: Callable[..., nn.Module], reduce: Callable[..., nn.Module]) -> dict[str, Build]:
    """The candidates by name, their convolutions in one codebase's form; pools as DARTS has them."""
    return {
        "none": lambda C, stride: Zero(stride),
        "noise": lambda C, stride: Noise(stride),
        "skip_connect": lambda C, stride: Identity() if stride == 1 else reduce(C, C),
        "max_pool_3x3": lambda C, stride: pool_then_bn("max_pool_3x3", C, stride),
        "avg_pool_3x3": lambda C, stride: pool_then_bn("avg_pool_3x3", C, stride),
        **{f"sep_conv_{k}x{k}": lambda C, stride, k=k: sep(C, k, stride) for k in (3, 5)},
        **{f"dil_conv_{k}x{k}": lambda C, stride, k=k: dil(C, k, stride) for k in (3, 5)},
    }


POOL_BN: dict[str, Build] = {name: lambda C, stride, name=name: PoolBN(name, C, stride) for name in POOLS}
OPS = table(SepConv, DilConv, FactorizedReduce)
NESTED_OPS = table(NestedSepConv, NestedDilConv, FactorizedReduce) | POOL_BN
SEQUENTIAL_OPS = table(SequentialSepConv, SequentialDilConv, PaddedFactorizedReduce) | POOL_BN

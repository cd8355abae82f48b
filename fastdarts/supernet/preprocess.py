"""What brings a cell's two inputs to its channels and its size. Parameter names are those of DARTS' codebases.

Notation: N images, C channels, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastdarts.ops.batch_norm import BatchNorm
from fastdarts.ops.relu_conv_bn import relu_conv_bns
from fastdarts.ops.sync import Sync

Parts = tuple[list[nn.Conv2d], BatchNorm]  # of a layer


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, BN: (N, C_in, H, W) -> (N, C_out, H, W). backend: of ops.relu_conv_bn."""

    def __init__(self, C_in: int, C_out: int, backend: str = "auto") -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=False))
        self.backend = backend
        self.sync: Sync | None = None

    def parts(self) -> Parts:
        layers: Any = self.op
        _, conv, bn = layers
        return [conv], bn

    def forward(self, x: Tensor) -> Tensor:
        return run_together([self], [x])[0]


class FactorizedReduce(nn.Module):
    """Halves H and W without losing pixels: ReLU, two stride-2 1x1 convolutions, the second one pixel on, concat, BN.

    (N, C_in, H, W) -> (N, C_out, H/2, W/2). backend: of ops.relu_conv_bn. Raises ValueError for an odd C_out.
    """

    def __init__(self, C_in: int, C_out: int, backend: str = "auto") -> None:
        super().__init__()
        if C_out % 2:
            raise ValueError(f"FactorizedReduce halves its output channels between two convolutions: {C_out} is odd")
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = BatchNorm(C_out, affine=False)
        self.backend = backend
        self.sync: Sync | None = None

    def parts(self) -> Parts:
        return [self.conv_1, self.conv_2], self.bn

    def forward(self, x: Tensor) -> Tensor:
        return run_together([self], [x])[0]


def run_together(layers: Sequence[ReLUConvBN | FactorizedReduce], xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each of a cell's two layers on its input, in one call: if they are synchronised, one sum over the ranks serves both."""
    convolutions, norms = zip(*(layer.parts() for layer in layers), strict=True)
    bn, one = norms[0], layers[0]
    if bn.training:
        for each in norms:
            each.num_batches_tracked.add_(1)
    return relu_conv_bns(
        xs,
        [[conv.weight for conv in each] for each in convolutions],
        [(each.running_mean, each.running_var) for each in norms],
        training=bn.training,
        momentum=bn.momentum,
        eps=bn.eps,
        backend=one.backend,
        sync=one.sync,
    )

"""What brings a cell's two inputs to its channels and its size. Parameter names are those of DARTS' codebases.

Letters: N images, C channels, H W pixels.
"""

from torch import Tensor, nn

from fastdarts.ops.batch_norm import Sync
from fastdarts.ops.relu_conv_bn import relu_conv_bn


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, BN: (N, C_in, H, W) -> (N, C_out, H, W). backend: of ops.relu_conv_bn."""

    def __init__(self, C_in: int, C_out: int, backend: str = "auto") -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=False))
        self.backend = backend
        self.sync: Sync | None = None

    def forward(self, x: Tensor) -> Tensor:
        _, conv, bn = self.op
        return _run(x, [conv], bn, self.backend, self.sync)


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
        self.bn = nn.BatchNorm2d(C_out, affine=False)
        self.backend = backend
        self.sync: Sync | None = None

    def forward(self, x: Tensor) -> Tensor:
        return _run(x, [self.conv_1, self.conv_2], self.bn, self.backend, self.sync)


def _run(x: Tensor, convolutions: list[nn.Conv2d], bn: nn.BatchNorm2d, backend: str, sync: Sync | None) -> Tensor:
    if bn.training:
        bn.num_batches_tracked.add_(1)
    return relu_conv_bn(
        x,
        [conv.weight for conv in convolutions],
        (bn.running_mean, bn.running_var),
        training=bn.training,
        momentum=bn.momentum,
        eps=bn.eps,
        backend=backend,
        sync=sync,
    )

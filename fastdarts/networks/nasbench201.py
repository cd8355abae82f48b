"""NAS-Bench-201's final network of a cell (Dong and Yang, ICLR 2020): a stem, three stages of cells, residual blocks between.

Notation: N images, C channels of a stage, H W pixels.
"""

from typing import Any

from torch import Tensor, nn

from fastdarts.networks.base import DiscreteNetwork, NetworkShape, Outputs
from fastdarts.networks.fused import FusedNodes, Gene
from fastdarts.networks.operations import BatchNorm, ReLUConvBN, operation
from fastdarts.spaces import Architecture
from fastdarts.spaces.nasbench201 import EDGES


class NASBench201Network(DiscreteNetwork):
    """Stages of C, 2C and 4C channels, each of `layers` cells; no auxiliary head, no drop path (its rate has no effect).

    Parameter names are those of its codebase's TinyNetwork. Raises ValueError for a shape that does not fit.
    """

    multiple = 4

    def __init__(self, architecture: Architecture, shape: NetworkShape) -> None:
        super().__init__(architecture, shape)
        if shape.auxiliary:
            raise ValueError("NAS-Bench-201's network has no auxiliary head")
        self.check_size(shape.image_size, shape.image_size)
        C = shape.init_channels
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), BatchNorm(C))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(ResidualBlock(C, 2 * C))
                C = 2 * C
            self.cells.extend(InferCell(architecture, C) for _ in range(shape.layers))
        self.num_features = C
        self.lastact = nn.Sequential(BatchNorm(C), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C, shape.num_classes)

    def forward(self, x: Tensor) -> Outputs:
        """See DiscreteNetwork.forward."""
        self.check_size(*x.shape[-2:])
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        return Outputs(self.classifier(self.global_pooling(self.lastact(x)).flatten(1)), None)


class InferCell(nn.Module):
    """Four nodes, the first the input and the last the output, with an operation on each of the six edges.

    backend  of ops.mixed_cell, which computes all of them in one call where it can (see FusedNodes)
    """

    def __init__(self, architecture: Architecture, C: int) -> None:
        super().__init__()
        self.backend = "auto"
        self.layers = nn.ModuleList(operation(op, C, 1) for op in architecture.ops)
        parts = enumerate(zip(architecture.ops, EDGES, strict=True))
        genes = [Gene(op, source, node, 1, f"layers.{i}") for i, (op, (source, node)) in parts]
        self.fused = FusedNodes(1, genes, self, C)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        out = self.fused(self, [x], None, self.backend)
        if out is not None:
            return out[:, -x.shape[1] :]
        nodes: dict[int, Any] = {0: x}
        for (source, node), layer in zip(EDGES, self.layers, strict=True):
            nodes[node] = nodes.get(node, 0) + layer(nodes[source])
        return nodes[len(nodes) - 1]


class ResidualBlock(nn.Module):
    """Halve the image and change the channels: (N, C_in, H, W) -> (N, C_out, H/2, W/2)."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.conv_a, self.conv_b = ReLUConvBN(C_in, C_out, 3, 2), ReLUConvBN(C_out, C_out, 3)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(C_in, C_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.downsample(x) + self.conv_b(self.conv_a(x))

"""NAS-Bench-201's supernet (Dong and Yang, ICLR 2020): a stem, three stages of cells, residual blocks between them.

Notation: N images, S pixels a side, C channels of a stage.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.ops.batch_norm import BatchNorm, batch_norm
from fastdarts.spaces import Kind, Space
from fastdarts.supernet.base import ChannelSampling, Network, check_channels
from fastdarts.supernet.cell import CellWeights
from fastdarts.supernet.eager_candidates import mixed_edges

BatchNormMode = Literal["batch", "running"]


class NASBench201Supernet(Network):
    """NAS-Bench-201's search network without its linear head.

    space            a space of its cells
    C                channels of the first stage; doubled by each of the two residual blocks
    cells_per_stage  N: three stages of N cells
    partial_channels, channel_sampling  as of Supernet
    batch_norm       of the cells: "batch" uses each batch's statistics, in evaluation too (the benchmark's first search
                     code); "running" keeps running ones. No affine parameters there; the other norms have both
    backend          as of Supernet

    Parameter names are those of its codebase, whose cells are `cells.0` ..., the residual blocks among them.
    Raises ValueError for a space of another network.
    """

    multiple = 4

    def __init__(
        self,
        space: Space,
        *,
        C: int = 16,
        cells_per_stage: int = 5,
        batch_norm: BatchNormMode = "batch",
        partial_channels: int = 1,
        channel_sampling: ChannelSampling = "first",
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            space, partial_channels=partial_channels, channel_sampling=channel_sampling, seed=seed, backend=backend
        )
        if space.skeleton != "nasbench201":
            raise ValueError(f"space {space.name} belongs to another network: use Supernet")
        check_channels(C, partial_channels)
        if cells_per_stage < 1:
            raise ValueError(f"cells_per_stage = {cells_per_stage}: a stage needs at least one cell")
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.cells, self.tap_channels = nn.ModuleList(), []
        for stage in range(3):
            width = C * 2**stage
            if stage:
                self.cells.append(ResidualBlock(width // 2, width))
            for _ in range(cells_per_stage):
                self.cells.append(NASBench201Cell(space, width, backend, batch_norm == "running", partial_channels))
            self.tap_channels.append(width)
        self.taps = tuple((cells_per_stage + 1) * stage + cells_per_stage - 1 for stage in range(3))
        self.lastact = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())

    def forward(
        self, x: Tensor, weights: Mapping[Kind, CellWeights], step: Tensor | None = None, stream: int = 0
    ) -> list[Tensor]:
        """See Network.forward; the last feature includes the last BatchNorm and ReLU, as the head expects it."""
        self._check_size(x, "NAS-Bench-201's network")
        stem: Any = self.stem
        cells: Any = self.cells
        lastact: Any = self.lastact
        (x,) = self._chain(x, [stem[0]], [stem[1]])
        features = []
        for i, cell in enumerate(cells):
            if isinstance(cell, NASBench201Cell):
                x = cell(x, weights["normal"], self._channels(i, x.shape[1], step, stream))
            else:
                x = self._block(x, cell)
            if i in self.taps:
                features.append(x)
        features[-1] = F.relu(self._normalised(x, lastact[0]))
        return features

    def _block(self, x: Tensor, block: "ResidualBlock") -> Tensor:
        """(N, C, H, W) -> (N, 2C, H/2, W/2)."""
        ops: Any = block.conv_a.op, block.conv_b.op
        (_, conv_a, norm_a), (_, conv_b, norm_b) = ops
        (body,) = self._chain(F.relu(x), [conv_a, conv_b], [norm_a, norm_b])
        return block.downsample(x) + body

    def _normalised(self, x: Tensor, bn: BatchNorm) -> Tensor:
        if bn.training:
            bn.num_batches_tracked.add_(1)
        running = bn.running_mean, bn.running_var
        return batch_norm(x, running, bn.training, bn.momentum, bn.eps, self.sync, bn.weight, bn.bias)


class NASBench201Cell(nn.Module):
    """Six mixed edges between four nodes; the first is the input, the last the output."""

    kind: Kind = "normal"

    def __init__(self, space: Space, C: int, backend: str, track_running_stats: bool, partial_channels: int = 1) -> None:
        super().__init__()
        self.edges = mixed_edges(space, self.kind, C, partial_channels, backend, track_running_stats)
        self._before = (space.nodes - 1) * C  # channels of the nodes before the last

    def forward(self, x: Tensor, weights: CellWeights, channels: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> the same shape; channels int64 (E, C/k) or None (the first C/k on each edge)."""
        return self.edges([x], weights.ops, weights.edges, channels)[:, self._before :]


class ResidualBlock(nn.Module):
    """Halve the image and double the channels: holds the parameters under the codebase's names; NASBench201Supernet runs it."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.conv_a, self.conv_b = _ReLUConvBN(C_in, C_out, 2), _ReLUConvBN(C_out, C_out, 1)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(C_in, C_out, 1, bias=False))


class _ReLUConvBN(nn.Module):
    def __init__(self, C_in: int, C_out: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(C_in, C_out, 3, stride, 1, bias=False), nn.BatchNorm2d(C_out))

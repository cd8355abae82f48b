"""DARTS' supernet: a stem and cells, two of which reduce.

Notation: N images, S pixels a side, C channels of the first stage's nodes, L cells, E edges of a cell.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from fastdarts.ops.batch_norm import BatchNorm
from fastdarts.spaces import Kind, Space
from fastdarts.supernet.base import ChannelSampling, Network, check_channels
from fastdarts.supernet.cell import CellWeights, SupernetCell

Stem = Literal["cifar", "imagenet"]
STEM_MULTIPLIER = 3
STEM_STRIDE = {"cifar": 1, "imagenet": 8}  # reduction of the image's side before the first cell's nodes


class Supernet(Network):
    """DARTS' search network without its head (the head belongs to the objective).

    space             the search space
    C                 channels of a node in the first stage; doubled by each of the two reduction cells
    layers            number of cells L >= 3; cells L//3 and 2L//3 reduce
    stem              "cifar": 3x3 convolution to 3C, BN. "imagenet": PC-DARTS' three stride-2 convolutions
    partial_channels  k: C/k channels pass through the candidates (1 = all of them)
    channel_sampling  "first": the first C/k channels (PC-DARTS' released code); "random": drawn for each edge at each step
    seed              of the random channels; torch's global generator initialises the weights
    backend           of the fused ops: "auto", "definition" or one that `python -m fastdarts.info` lists
    skip_dropout      apply dropout to skips of stride 1, at the rate that `drop_skips` sets (P-DARTS)
    drop_path         drop whole edges of each image, at the rate that `drop_edges` sets (R-DARTS); edge weights then get no
                      gradient

    Parameter names are those of quark0/darts and PC-DARTS: load_state_dict loads the checkpoints of their search networks, and
    they load its state_dict (with their `classifier`, once load_state_dict or an objective has added one).
    Raises ValueError when C, k and layers do not fit together.
    """

    def __init__(
        self,
        space: Space,
        *,
        C: int = 16,
        layers: int = 8,
        stem: Stem = "cifar",
        partial_channels: int = 1,
        channel_sampling: ChannelSampling = "first",
        seed: int = 0,
        backend: str = "auto",
        skip_dropout: bool = False,
        drop_path: bool = False,
    ) -> None:
        super().__init__(
            space, partial_channels=partial_channels, channel_sampling=channel_sampling, seed=seed, backend=backend
        )
        if space.skeleton != "darts":
            raise ValueError(f"space {space.name} belongs to another network: use NASBench201Supernet")
        if layers < 3:
            raise ValueError(f"layers = {layers}: three stages need at least 3 cells")
        check_channels(C, partial_channels)
        if stem == "imagenet" and C % 2:
            raise ValueError(f"init_channels = {C}: the imagenet stem needs an even number")
        self.stem_kind = stem
        self.multiple = 4 * STEM_STRIDE[stem]
        C_prev_prev, C_prev, reduction_prev = self._build_stem(stem, C)
        reductions = (layers // 3, 2 * layers // 3)
        self.cells = nn.ModuleList()
        self.tap_channels: list[int] = []
        for i in range(layers):
            kind: Kind = "reduce" if i in reductions else "normal"
            C = 2 * C if kind == "reduce" else C
            channels = C_prev_prev, C_prev, C
            options = partial_channels, backend, skip_dropout, drop_path
            self.cells.append(SupernetCell(space, kind, *channels, reduction_prev, *options))
            reduction_prev = kind == "reduce"
            C_prev_prev, C_prev = C_prev, space.nodes * C
            if i + 1 in (*reductions, layers):  # the last cell of a stage
                self.tap_channels.append(C_prev)
        self.taps = tuple(i - 1 for i in (*reductions, layers))

    def _build_stem(self, stem: Stem, C: int) -> tuple[int, int, bool]:
        """Build the stem; return the channels of the first cell's two inputs, and whether the first is twice as large."""
        C = STEM_MULTIPLIER * C
        if stem == "cifar":
            self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
            return C, C, False
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self.stem1 = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(C))
        return C, C, True

    def forward(
        self,
        x: Tensor,
        weights: Mapping[Kind, CellWeights],
        step: Tensor | None = None,
        stream: int = 0,
    ) -> list[Tensor]:
        """See Network.forward."""
        self._check_size(x, f"the {self.stem_kind} stem")
        s0, s1 = self._stem(x)
        features = []
        cells: Any = self.cells
        for i, cell in enumerate(cells):
            channels = self._channels(i, cell.preprocess1.op[1].out_channels, step, stream)
            s0, s1 = s1, cell(s0, s1, weights[cell.kind], channels)
            if i in self.taps:
                features.append(s1)
        return features

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the stem as one op on its modules' parameters; return the first cell's two inputs."""
        parts = [self.stem] if self.stem_kind == "cifar" else [self.stem0, self.stem1]
        modules = [m for part in parts for m in part]
        convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
        norms = [m for m in modules if isinstance(m, BatchNorm)]
        outs = self._chain(x, convolutions, norms, len(parts))
        return outs[0], outs[-1]

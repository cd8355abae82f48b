"""The supernet: a stem, cells in three stages, and the feature that each stage ends with.

Letters: N images, S pixels a side, C channels of the first stage's nodes, L cells, E edges of a cell.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastdarts.ops.backend import offered
from fastdarts.ops.conv_bn_chain import conv_bn_chain
from fastdarts.ops.philox import Purpose, random_words
from fastdarts.ops.sync import Sync
from fastdarts.spaces import Kind, Space
from fastdarts.supernet.cell import Cell, CellWeights
from fastdarts.supernet.mixed import MixedEdges
from fastdarts.supernet.preprocess import FactorizedReduce, ReLUConvBN

Stem = Literal["cifar", "imagenet"]
ChannelSampling = Literal["first", "random"]
STEM_MULTIPLIER = 3
STEM_STRIDE = {"cifar": 1, "imagenet": 8}  # what the first cell's nodes see of the image's side


class Supernet(nn.Module):
    """DARTS' search network without its head (the head belongs to the objective).

    space             the search space
    C                 channels of a node in the first stage; doubled by each of the two reduction cells
    layers            number of cells L >= 3; cells L//3 and 2L//3 reduce
    stem              "cifar": 3x3 convolution to 3C, BN. "imagenet": PC-DARTS' three stride-2 convolutions
    partial_channels  k: C/k channels pass through the candidates (1 = all of them)
    channel_sampling  which ones: "first" (PC-DARTS' released code), or "random": drawn anew for each edge at each step
    seed              of the random channels; the initial weights come from torch's global generator
    backend           of the fused ops: "auto", "definition" or one that `python -m fastdarts.info` lists

    Parameter names are those of quark0/darts and PC-DARTS: load_state_dict takes what their search networks saved, and
    state_dict gives what they take (with their `classifier`, once load_state_dict or an objective has brought one).
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
    ) -> None:
        super().__init__()
        if layers < 3:
            raise ValueError(f"layers = {layers}: three stages need at least 3 cells")
        if partial_channels < 1 or C % (2 * partial_channels):
            raise ValueError(f"init_channels = {C} and partial_channels = {partial_channels}: C/k must be an even whole number")
        self.space, self.stem_kind, self.k = space, stem, partial_channels
        self.channel_sampling, self.seed, self.backend = channel_sampling, seed, backend
        self.sync: Sync | None = None
        C_prev_prev, C_prev, reduction_prev = self._build_stem(stem, C)
        reductions = (layers // 3, 2 * layers // 3)
        self.cells = nn.ModuleList()
        self.tap_channels: list[int] = []
        for i in range(layers):
            kind: Kind = "reduce" if i in reductions else "normal"
            C = 2 * C if kind == "reduce" else C
            self.cells.append(Cell(space, kind, C_prev_prev, C_prev, C, reduction_prev, partial_channels, backend))
            reduction_prev = kind == "reduce"
            C_prev_prev, C_prev = C_prev, space.nodes * C
            if i + 1 in (*reductions, layers):  # the last cell of a stage
                self.tap_channels.append(C_prev)
        self.taps = tuple(i - 1 for i in (*reductions, layers))
        self.classifier: nn.Linear | None = None

    def _build_stem(self, stem: Stem, C: int) -> tuple[int, int, bool]:
        """Returns the channels of the first cell's two inputs, and whether the first of them is twice as large."""
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

    @property
    def multiple(self) -> int:
        """The image's side must be a multiple of this, so that each halving is of an even number."""
        return 4 * STEM_STRIDE[self.stem_kind]

    def synchronise(self, sync: Sync | None) -> None:
        """Take BatchNorm's batch statistics over the images of all ranks; None: over those of this process.

        All ranks have as many images. Forward as well as backward, a cell sums over the ranks at most 9 times (the two
        preprocess layers once, the mixed edges once or twice for the inputs and for each node that is read), the stem once
        a layer. The definitions sum once for each BatchNorm.
        """
        self.sync = sync
        for module in self.modules():
            if isinstance(module, MixedEdges | ReLUConvBN | FactorizedReduce):
                module.sync = sync

    def forward(
        self,
        x: Tensor,
        weights: Mapping[Kind, CellWeights],
        step: Tensor | None = None,
        stream: int = 0,
    ) -> list[Tensor]:
        """The features of the three stages.

        x        (N, 3, S, S), S a multiple of `multiple`
        weights  how the normal and the reduction cells mix; differentiable
        step     int64 tensor of one element on x' device; needed by (and only read for) random channels
        stream   a philox.Stream: whose random channels
        Returns F_l, l = 1..3: (N, tap_channels[l], S / (d * 2**l)) with d = 1/2 (CIFAR stem) or 4 (ImageNet stem).
        """
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise ValueError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels: with the {self.stem_kind} stem the sides must be "
                f"multiples of {self.multiple}"
            )
        s0, s1 = self._stem(x)
        features = []
        for i, cell in enumerate(self.cells):
            channels = self._channels(i, cell, step, stream)
            s0, s1 = s1, cell(s0, s1, weights[cell.kind], channels)
            if i in self.taps:
                features.append(s1)
        return features

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the first cell reads; the modules hold the parameters, the layers run as one op."""
        parts = [self.stem] if self.stem_kind == "cifar" else [self.stem0, self.stem1]
        modules = [m for part in parts for m in part]
        convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
        norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
        if norms[0].training:
            for bn in norms:
                bn.num_batches_tracked.add_(1)
        outs = conv_bn_chain(
            x,
            [conv.weight for conv in convolutions],
            [(bn.weight, bn.bias) for bn in norms],
            [(bn.running_mean, bn.running_var) for bn in norms],
            strides=[conv.stride[0] for conv in convolutions],
            outputs=len(parts),
            training=norms[0].training,
            momentum=norms[0].momentum,
            eps=norms[0].eps,
            backend=offered("conv_bn_chain", self.backend),
            sync=self.sync,
        )
        return outs[0], outs[-1]

    def _channels(self, number: int, cell: Cell, step: Tensor | None, stream: int) -> Tensor | None:
        """The channels that each edge of cell `number` processes at this step: int64 (E, C/k), or None for `first`.

        They are the C/k channels with the smallest random words, in ascending order.
        """
        if self.channel_sampling == "first" or self.k == 1:
            return None
        if step is None:
            raise ValueError("random channels are drawn anew at each step: pass step, an int64 tensor of one element")
        E, C = self.space.num_edges, cell.preprocess1.op[1].out_channels
        edges = torch.arange(number * E, (number + 1) * E, device=step.device)
        words = random_words(self.seed, stream, step, edges, Purpose.CHANNELS, C)
        return words.sort(dim=1, stable=True).indices[:, : C // self.k].sort(dim=1).values

    def attach_classifier(self, num_classes: int) -> nn.Linear:
        """The customary linear head on the last feature, under its customary name; made on the first call.

        Raises ValueError if there is one of another size (whose parameters an optimizer may hold).
        """
        if self.classifier is None:
            self.classifier = nn.Linear(self.tap_channels[-1], num_classes).to(next(self.parameters()))
        if self.classifier.out_features != num_classes:
            has = f"the supernet has a classifier of {self.classifier.out_features} classes"
            raise ValueError(f"{has}, {num_classes} are asked for: set supernet.classifier = None first")
        return self.classifier

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; takes DARTS' and PC-DARTS' files unchanged: a DataParallel prefix is dropped, a classifier kept."""
        if state_dict and all(name.startswith("module.") for name in state_dict):
            state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
        if "classifier.weight" in state_dict:
            self.attach_classifier(state_dict["classifier.weight"].shape[0])
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

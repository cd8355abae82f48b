"""DARTS' network of a genotype (Liu et al., ICLR 2019) for CIFAR and ImageNet: stem, cells of which two reduce, heads.

Notation: N images, C channels of the first cells' nodes, L cells, H W pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.networks.base import DiscreteNetwork, NetworkShape, Outputs
from fastdarts.networks.cell import cell_of
from fastdarts.networks.operations import BatchNorm
from fastdarts.spaces import Kind
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet.network import STEM_MULTIPLIER, STEM_STRIDE

AUXILIARY_STRIDE = {"cifar": 3, "imagenet": 2}  # of the auxiliary head's pool


class DartsNetwork(DiscreteNetwork):
    """Cells L//3 and 2L//3 reduce and double the channels; the auxiliary head reads the output of cell 2L//3.

    The CIFAR stem is a 3x3 convolution to 3C; ImageNet's are three of stride 2 to C. Parameter names are those of DARTS'
    NetworkCIFAR and NetworkImageNet. In training drop path multiplies each gene's output but a skip's of stride 1 (in
    FairDARTS' cells each node) by 0 with probability `drop_path_rate`, else by 1 / (1 - drop_path_rate), image by image; it
    draws from torch's global generator. Raises ValueError for a shape that does not fit.
    """

    def __init__(self, genotype: Genotype, shape: NetworkShape) -> None:
        super().__init__(genotype, shape)
        if shape.kind == "imagenet" and shape.init_channels % 2:
            raise ValueError(f"init_channels = {shape.init_channels}: the imagenet stem needs an even number")
        C, layers = shape.init_channels, shape.layers
        self.multiple = 4 * STEM_STRIDE[shape.kind]
        self.check_size(shape.image_size, shape.image_size)
        C_prev_prev = C_prev = self._build_stem(C)
        reduction_prev = shape.kind == "imagenet"
        reductions = (layers // 3, 2 * layers // 3)
        self.tapped = reductions[1]
        self.cells, C_auxiliary = nn.ModuleList(), 0
        for i in range(layers):
            kind: Kind = "reduce" if i in reductions else "normal"
            C = 2 * C if kind == "reduce" else C
            cell = cell_of(genotype, kind, C_prev_prev, C_prev, C, reduction_prev)
            self.cells.append(cell)
            reduction_prev = kind == "reduce"
            C_prev_prev, C_prev = C_prev, cell.multiplier * C
            if i == self.tapped:
                C_auxiliary = C_prev
        self.auxiliary_head: AuxiliaryHead | None = None
        if shape.auxiliary:
            self.auxiliary_head = AuxiliaryHead(C_auxiliary, shape)
            self.auxiliary_head.check_size(shape.image_size // self.multiple, shape.image_size // self.multiple)
        self.num_features = C_prev
        self.global_pooling = nn.AdaptiveAvgPool2d(1) if shape.kind == "cifar" else WholeAvgPool()
        self.classifier = nn.Linear(C_prev, shape.num_classes)

    def _build_stem(self, C: int) -> int:
        """Build the stem; return the channels of its outputs."""
        if self.shape.kind == "cifar":
            C = STEM_MULTIPLIER * C
            self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), BatchNorm(C))
            return C
        half = C // 2
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
            BatchNorm(half),
            nn.ReLU(),
            nn.Conv2d(half, C, 3, stride=2, padding=1, bias=False),
            BatchNorm(C),
        )
        self.stem1 = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False), BatchNorm(C))
        return C

    def forward(self, x: Tensor) -> Outputs:
        """See DiscreteNetwork.forward."""
        self.check_size(*x.shape[-2:])
        s0, s1 = self._stem(x)
        auxiliary, all_factors = None, self.drop_path_factors(x.shape[0])
        for i, (cell, factors) in enumerate(zip(self.cells, all_factors, strict=True)):
            s0, s1 = s1, cell(s0, s1, factors)
            if i == self.tapped and self.training and self.auxiliary_head is not None:
                auxiliary = self.auxiliary_head(s1)
        return Outputs(self.classifier(self.global_pooling(s1).flatten(1)), auxiliary)

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.shape.kind == "cifar":
            s1 = self.stem(x)
            return s1, s1
        s0 = self.stem0(x)
        return s0, self.stem1(s0)

    def drop_path_factors(self, images: int) -> list[Tensor | None]:
        """Draw drop path's factors, float32 (drops, N, 1, 1, 1) for each cell; None outside training and without drop path."""
        cells: Any = self.cells
        if not (self.training and self.drop_path):
            return [None] * len(cells)
        counts, keep = [cell.drops for cell in cells], 1 - self.drop_path_rate
        kept = torch.bernoulli(keep.expand(sum(counts), images, 1, 1, 1))
        return list((kept / keep).split(counts))


class WholeAvgPool(nn.AvgPool2d):
    """The mean over all pixels of any image; at 224 pixels DARTS' average pool of 7x7: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__(7)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return F.adaptive_avg_pool2d(input, 1)


class AuxiliaryHead(nn.Module):
    """A second classifier for training: ReLU, pool to 2x2, 1x1 to 128, BN, ReLU, 2x2 to 768, [BN], ReLU, linear."""

    def __init__(self, C: int, shape: NetworkShape) -> None:
        super().__init__()
        self.shape, self.stride = shape, AUXILIARY_STRIDE[shape.kind]
        pool = nn.AvgPool2d(5, self.stride, count_include_pad=False)
        norm = shape.kind == "cifar" if shape.auxiliary_norm is None else shape.auxiliary_norm
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2) if shape.auxiliary_pool == "adaptive" else pool,
            nn.Conv2d(C, 128, 1, bias=False),
            BatchNorm(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([BatchNorm(768)] if norm else []),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, shape.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, num_classes). Raises ValueError for pixels that do not fit the fixed pool."""
        self.check_size(*x.shape[-2:])
        return self.classifier(self.features(x).flatten(1))

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError unless the pool makes 2x2 of height x width pixels."""
        least = self.stride + 5
        if self.shape.auxiliary_pool == "fixed" and not all(least <= side < least + self.stride for side in (height, width)):
            scale = 4 * STEM_STRIDE[self.shape.kind]
            fits = " or ".join(str(scale * side) for side in range(least, least + self.stride))
            raise ValueError(
                f"the auxiliary head pools 5x5 pixels, it does not fit images of {scale * height}x{scale * width}: take {fits} "
                "pixels, auxiliary_pool adaptive, or no auxiliary head"
            )

"""What every discrete network shares: the shape it is built from, its outputs, drop path's rate, its checks.

Notation: N images, C channels of the first cell's nodes, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from fastdarts.networks.fused import FusedNodes
from fastdarts.networks.operations import BatchNorm
from fastdarts.ops.of_layers import kernels_of
from fastdarts.ops.sync import Sync
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype

NetworkKind = Literal["cifar", "imagenet", "nasbench201"]
NETWORKS: tuple[NetworkKind, ...] = get_args(NetworkKind)
FUSED_BY = {"cpu": "in C++", "triton": "by Triton"}


class Outputs(NamedTuple):
    """Logits (N, num_classes), and those of the auxiliary head: None in eval mode and without one."""

    logits: Tensor
    auxiliary: Tensor | None


@dataclass(frozen=True)
class NetworkShape:
    """What a network is built from besides its architecture.

    kind            DARTS' network for CIFAR or ImageNet, or NAS-Bench-201's
    init_channels   channels C of the nodes of the first cells
    layers          number of cells; of NAS-Bench-201 cells per stage
    num_classes     number of classes
    auxiliary       add the auxiliary head
    auxiliary_norm  BatchNorm of 768 channels in that head; None: as DARTS, in the CIFAR network only
    auxiliary_pool  "fixed": the head's 5x5 average pool, which fits few sizes; "adaptive": to 2x2 pixels from any size
    image_size      side of the training images in pixels, for the checks of sizes
    """

    kind: NetworkKind
    init_channels: int
    layers: int
    num_classes: int
    auxiliary: bool
    auxiliary_norm: bool | None = None
    auxiliary_pool: Literal["fixed", "adaptive"] = "fixed"
    image_size: int = field(kw_only=True)

    def __str__(self) -> str:
        cells = "cells a stage" if self.kind == "nasbench201" else "cells"
        return f"{self.kind} network, {self.init_channels} channels, {self.layers} {cells}, {self.num_classes} classes"

    def __post_init__(self) -> None:
        """Raise ValueError for a kind or number that no network has."""
        if self.kind not in NETWORKS:
            raise ValueError(f"network {self.kind!r}: give {', '.join(NETWORKS)}")
        if self.auxiliary_pool not in ("fixed", "adaptive"):
            raise ValueError(f"auxiliary_pool = {self.auxiliary_pool!r}: give fixed or adaptive")
        least = {"init_channels": 1, "layers": 1 if self.kind == "nasbench201" else 3, "num_classes": 1, "image_size": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} = {getattr(self, name)}: the {self.kind} network needs at least {smallest}")


# The networks whose figures papers report; NAS-Bench-201's layers are cells per stage.
STANDARD: dict[NetworkKind, NetworkShape] = {
    "cifar": NetworkShape("cifar", 36, 20, 10, auxiliary=False, image_size=32),
    "imagenet": NetworkShape("imagenet", 48, 14, 1000, auxiliary=False, image_size=224),
    "nasbench201": NetworkShape("nasbench201", 16, 5, 10, auxiliary=False, image_size=32),
}


class DiscreteNetwork(nn.Module):
    """A network of one architecture.

    classifier      the last layer
    num_features    length of the vector before the classifier
    multiple        each image side must be a multiple of this, so that each halving is of an even number
    drop_path_rate  0-dim float32 buffer, not saved: the probability with which drop path drops; fill it in place. 0 at first
    drop_path       False leaves drop path's draws and products out, for training at rate 0 throughout
    """

    classifier: nn.Linear
    num_features: int
    multiple: int
    drop_path_rate: Tensor
    drop_path: bool = True

    def __init__(self, architecture: Genotype | Architecture, shape: NetworkShape) -> None:
        super().__init__()
        self.architecture, self.shape = architecture, shape
        self.register_buffer("drop_path_rate", torch.zeros((), dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Outputs:
        """Classify x: float (N, 3, H, W), normalised. Raises ValueError for sizes that do not fit."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and convert as torch does, but leave the rate in float32."""
        rate = self.drop_path_rate
        super()._apply(fn, recurse)
        device = self.drop_path_rate.device
        self.drop_path_rate = torch.zeros((), device=device) if rate.is_meta else rate.to(device)
        return self

    def synchronise(self, sync: Sync | None) -> None:
        """Take BatchNorm's batch statistics over the images of all ranks, which have equally many; None: of this process."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.sync = sync

    def set_backend(self, backend: str) -> None:
        """Set the backend of the cells' fused ops; "definition": their modules compute."""
        for cell in self._fused_cells():
            cell.backend = backend

    def computed_by(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
        """Return what computes the cells there, in words."""
        cells = self._fused_cells()
        chosen = kernels_of("mixed_cell", cells[0].backend, torch.device(device), dtype) if cells else "definition"
        if chosen == "definition":
            return "cells in plain PyTorch"
        lacking = [why for cell in cells if (why := cell.fused.lacks_by(chosen))]
        if len(lacking) == len(cells):
            return f"cells in plain PyTorch ({lacking[0]})"
        rest = f"{len(lacking)} of {len(cells)} cells in plain PyTorch ({lacking[0]}), the others" if lacking else "cells"
        return f"{rest} fused {FUSED_BY[chosen]}"

    def _fused_cells(self) -> list[Any]:
        return [module for module in self.modules() if isinstance(getattr(module, "fused", None), FusedNodes)]

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError unless both sides are multiples of `multiple`."""
        if height % self.multiple or width % self.multiple:
            sides = f"images of {height}x{width} pixels"
            raise ValueError(f"{sides}: the {self.shape.kind} network needs sides that are multiples of {self.multiple}")

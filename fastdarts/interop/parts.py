"""Pack the parameters and statistics of another codebase's candidates for one call of ops.mixed_cell.

Notation: E edges, K candidates, Cq channels that pass through a candidate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.interop.reads import Reads
from fastdarts.interop.recognise import FusableCandidate, Preprocess, layer_at
from fastdarts.interop.tree import Tree, only_torch_layers
from fastdarts.kernels.graph import Graph
from fastdarts.ops.batch_norm import BatchNorm
from fastdarts.ops.of_layers import mixed_cell_of_layers


class Layers(NamedTuple):
    """A candidate's convolutions, norms and dropouts, as found at their locations.

    reads  dependencies of the codebase's own forwards; None if there are none
    """

    convolutions: tuple[nn.Conv2d, ...]
    norms: tuple[BatchNorm, ...]
    dropouts: tuple[nn.Dropout, ...]
    shapes: tuple[torch.Size, ...]  # of the convolutions' weights
    tree: Tree
    reads: Reads | None = None

    @staticmethod
    def of(candidate: nn.Module, layout: FusableCandidate | Preprocess) -> "Layers":
        """Find the layers. Raises KeyError if one is missing, Unwatched if the candidate's forward cannot be watched."""
        paths = layout.convolutions, layout.norms, layout.dropouts
        found, *rest = [tuple([layer_at(candidate, p) for p in each]) for each in paths]
        reads = None if only_torch_layers(candidate) else Reads(candidate, layers=True)
        return Layers(found, *rest, _shapes(found), Tree(candidate), reads)

    def same(self, candidate: nn.Module) -> bool:
        """Return whether `candidate` is the module they were found in, unchanged except for numeric values."""
        return self.tree.same(candidate) and _shapes(self.convolutions) == self.shapes

    def as_tried(self, candidate: nn.Module) -> bool:
        """Return whether the dependencies of its forward have their verified values."""
        return self.reads is None or self.reads.same(candidate)

    def drops(self) -> bool:
        """Return whether a dropout is active."""
        return any(d.training and d.p for d in self.dropouts)

    @property
    def key(self) -> str | None:
        """Return the key of its forward's dependencies."""
        return None if self.reads is None else self.reads.key


def _shapes(convolutions: Sequence[nn.Conv2d]) -> tuple[torch.Size, ...]:
    return tuple([c.weight.shape for c in convolutions])


def run(
    found: Sequence[Layers],
    inputs: list[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    graph: Graph,
    partial_channels: int,
    backend: str,
) -> Tensor:
    """Call ops.mixed_cell with the candidates' own parameters; updates running statistics and counters as their forwards do.

    found  layers of all candidates of `graph`, in its order; their norms share mode and settings
    """
    convolutions = [layer for layers in found for layer in layers.convolutions]
    norms = [norm for layers in found for norm in layers.norms]
    return mixed_cell_of_layers(
        convolutions, norms, inputs, ops, edges, graph=graph, partial_channels=partial_channels, backend=backend
    )


def alike(found: Sequence[Layers], x: Tensor, affine: bool = False) -> bool:
    """Return whether all norms share mode and settings, so that one call can compute them for images like x.

    affine  whether they may have affine parameters
    False for a norm used twice, without momentum, or with statistics that it does not update: torch computes these.
    """
    norms = [n for f in found for n in f.norms]
    if len({(n.training, n.momentum, n.eps, *_kept(n)) for n in norms}) > 1 or len(set(norms)) < len(norms):
        return False
    return not norms or (usual(norms[0], x) and (affine or not any(n.affine for n in norms)))


def usual(norm: BatchNorm, x: Tensor) -> bool:
    """Return whether the fused ops can compute a norm, in its dtype."""
    tracks, dtype = _kept(norm)
    fits = dtype is None or dtype == x.dtype or torch.is_autocast_enabled(x.device.type)
    return fits and norm.momentum is not None and tracks == (dtype is not None)


def _kept(norm: BatchNorm) -> tuple[bool, torch.dtype | None]:
    return norm.track_running_stats, None if norm.running_mean is None else norm.running_mean.dtype

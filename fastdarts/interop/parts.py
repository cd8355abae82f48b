"""The parameters and statistics of another codebase's candidates, as one call of ops.mixed_cell takes them.

Letters: E edges, K candidates, Cq channels that pass through a candidate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.interop.recognise import Layout, Path, layer_at, settings_of
from fastdarts.ops.graph import Graph
from fastdarts.ops.mixed_cell import mixed_cell


class Layers(NamedTuple):
    """A candidate's convolutions, norms and dropouts, as they were found at their places."""

    convolutions: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    dropouts: tuple[nn.Module, ...]
    shapes: tuple[torch.Size, ...]  # of the convolutions' weights

    @staticmethod
    def of(candidate: nn.Module, layout: Layout) -> "Layers":
        """Raises KeyError where a layer is missing."""

        def at(paths: Sequence[Path]) -> tuple[nn.Module, ...]:
            return tuple([layer_at(candidate, path) for path in paths])

        convolutions = at(layout.convolutions)
        shapes = tuple([c.weight.shape for c in convolutions])
        return Layers(convolutions, at(layout.norms), at(layout.dropouts), shapes)

    def fit(self, layout: Layout) -> bool:
        """Whether the layers are still set as they were when `layout` was recognised."""
        expected = [s for s in layout.settings if s[0] in ("conv", "norm")]
        found = sorted((*layout.convolutions, *layout.norms))
        by_path = dict(zip((*layout.convolutions, *layout.norms), (*self.convolutions, *self.norms), strict=True))
        order = [path for path in _in_order(layout) if path in by_path]
        return len(found) == len(expected) and [settings_of(by_path[path]) for path in order] == expected


def _in_order(layout: Layout) -> list[Path]:
    """Paths of convolutions and norms as `settings` lists them."""
    convolutions, norms = iter(layout.convolutions), iter(layout.norms)
    return [next(convolutions if s[0] == "conv" else norms) for s in layout.settings if s[0] in ("conv", "norm")]


def run(
    found: Sequence[Layers],
    inputs: list[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    graph: Graph,
    partial_channels: int,
    backend: str,
) -> Tensor:
    """ops.mixed_cell with the candidates' own parameters; their running statistics and counters move as in their forward.

    found  of all candidates of `graph`, in its order; their norms are of one mode and one setting
    """
    x = inputs[0]
    weights = [layer.weight.reshape(-1) for layers in found for layer in layers.convolutions]
    norms = [norm for layers in found for norm in layers.norms]
    packed = torch.cat(weights) if weights else x.new_empty(0)
    first = norms[0] if norms else None
    tracks = first is not None and first.running_mean is not None
    means, variances = ([getattr(n, name) for n in norms] if tracks else [] for name in ("running_mean", "running_var"))
    running = (torch.cat(means), torch.cat(variances)) if tracks else None
    training = first.training if first is not None else False
    out = mixed_cell(
        inputs,
        ops,
        edges,
        packed,
        running,
        None,
        graph=graph,
        partial_channels=partial_channels,
        training=training,
        momentum=first.momentum if first is not None else 0.1,
        eps=first.eps if first is not None else 1e-5,
        backend=backend,
    )
    if running is not None and training:
        sizes = [len(m) for m in means]
        torch._foreach_copy_(means, running[0].split(sizes))
        torch._foreach_copy_(variances, running[1].split(sizes))
        counters = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        if counters:
            torch._foreach_add_(counters, 1)
    return out


def alike(found: Sequence[Layers]) -> bool:
    """Whether all norms have one mode and one setting, so that one call can serve them."""
    return len({(n.training, n.momentum, n.eps, n.affine, n.running_mean is None) for f in found for n in f.norms}) <= 1

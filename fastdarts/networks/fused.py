"""A discrete cell as two fused calls, preprocess layers and operations, on the Parameters and buffers of its modules.

Notation: N images, C channels of a node, H W pixels, E genes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.kernels.mixed_cell_launches import beyond
from fastdarts.logs import say_once
from fastdarts.module_hooks import global_hooks, has_hooks
from fastdarts.networks.operations import BatchNorm
from fastdarts.ops import backend as backends
from fastdarts.ops.of_layers import fits, kernels_of, mixed_cell_of_layers, relu_conv_bns_of_layers
from fastdarts.ops.sync import Sync
from fastdarts.supernet.candidates import NAMES, NASBENCH201, STRIDED, TWICE, Names

DISCRETE = {
    "max_pool_3x3": Names(Candidate.PLAIN_MAX_POOL_3),
    "avg_pool_3x3": Names(Candidate.PLAIN_AVG_POOL_3),
    "sep_conv_7x7": Names(Candidate.SEP_CONV_7, *TWICE),
}
FUSED = {1: NAMES | NASBENCH201 | DISCRETE, 2: STRIDED | DISCRETE}  # operations by stride
SETTINGS = (  # of convolutions and pools
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "offset"),
    *("ceil_mode", "count_include_pad", "divisor_override"),
)


class Gene(NamedTuple):
    """An operation between two states; states 0, 1, ... are the cell's inputs.

    path  of its module in the cell
    drop  number of its drop-path factor; None: it is not dropped
    """

    name: str
    source: int
    node: int
    stride: int
    path: str
    drop: int | None = None


class FusedNodes:
    """The nodes of a cell, sums of their genes, as one call of ops.mixed_cell.

    inputs  number of the cell's inputs
    cell    which has the genes' modules
    C       channels of a node
    nodes   the nodes that genes lead to, in the order of the result
    lacks   why the call cannot compute these genes, or None
    """

    def __init__(self, inputs: int, genes: Sequence[Gene], cell: nn.Module, C: int) -> None:
        self._beyond = {"triton": beyond(inputs, C)}
        genes = sorted(genes, key=lambda gene: gene.node)
        self.nodes = tuple(dict.fromkeys(gene.node for gene in genes))
        unknown = dict.fromkeys(gene.name for gene in genes if gene.name not in FUSED[gene.stride])
        self.lacks = f"no kernel computes {', '.join(unknown)}" if unknown else None if genes else "it has no genes"
        if self.lacks:
            return
        rows = [FUSED[gene.stride][gene.name] for gene in genes]
        place = [*range(inputs), *self.nodes]
        edges = [
            Edge(place.index(gene.source), self.nodes.index(gene.node), gene.stride, (row.code,))
            for gene, row in zip(genes, rows, strict=True)
        ]
        self.graph = Graph(inputs, len(self.nodes), tuple(edges))
        self._drops = [gene.drop for gene in genes]
        self._paths = [tuple(gene.path.split(".")) for gene in genes]
        self._parts = [(names.convolutions, names.norms) for names in rows]
        self._built = [built(_descend(cell, path)) for path in self._paths]

    def lacks_by(self, chosen: str) -> str | None:
        """Return why the kernels of this backend cannot compute these genes, or None."""
        return self.lacks or self._beyond.get(chosen)

    def __call__(self, cell: nn.Module, inputs: list[Tensor], factors: Tensor | None, backend: str) -> Tensor | None:
        """Return the nodes (N, nodes * C, H', W'), or None where the modules have to compute them themselves.

        factors  drop path's, (drops, N, ...), or None
        backend  of ops.mixed_cell
        """
        if self.lacks:
            return None
        modules = [_descend(cell, path) for path in self._paths]
        if [built(module) for module in modules] != self._built:
            return None
        convolutions, norms = [], []
        for module, (of_convolutions, of_norms) in zip(modules, self._parts, strict=True):
            convolutions += [_descend(module, name.split(".")) for name in of_convolutions]
            norms += [_descend(module, name.split(".")) for name in of_norms]
        if not _usual("mixed_cell", inputs, modules, norms, backend):
            return None
        chosen = kernels_of("mixed_cell", backend, inputs[0].device, backends.arithmetic(inputs[0]))
        if why := self.lacks_by(chosen):
            say_once(f"mixed_cell: cells computed by their modules; not {chosen}: {why}")
            return None
        return mixed_cell_of_layers(
            convolutions,
            norms,
            inputs,
            inputs[0].new_ones(len(modules), 1),
            None if factors is None or not len(factors) else self._edges(factors.flatten(1)),
            graph=self.graph,
            backend=backend,
            sync=_sync(norms),
        )

    def _edges(self, factors: Tensor) -> Tensor:
        """Map drop path's factors (drops, N) to weights of the edges (E, N)."""
        one = torch.ones_like(factors[0])
        return torch.stack([one if drop is None else factors[drop] for drop in self._drops])


def built(module: nn.Module) -> list[tuple[Any, ...]]:
    """Return kinds, settings and the shapes of parameters of all layers of a module, which a fused call takes for granted."""
    return [
        (type(layer), *map(layer.__dict__.get, SETTINGS), *(p if p is None else p.shape for p in layer._parameters.values()))
        for layer in module.modules()
    ]


def fused_layers(layers: Sequence[Any], as_built: Sequence[Any], xs: Sequence[Tensor], backend: str) -> Sequence[Tensor] | None:
    """Return the outputs of a cell's preprocess layers by one call, or None where the modules have to compute them themselves.

    as_built  what `built` returned of each layer
    backend   of ops.relu_conv_bn
    """
    if [built(layer) for layer in layers] != as_built:
        return None
    convolutions, norms = map(list, zip(*(layer.parts() for layer in layers), strict=True))
    if not _usual("relu_conv_bn", xs, layers, norms, backend):
        return None
    return relu_conv_bns_of_layers(convolutions, norms, xs, backend=backend, sync=_sync(norms))


def _descend(module: Any, path: Sequence[str]) -> Any:
    for name in path:
        module = module._modules[name]
    return module


def _sync(norms: list[BatchNorm]) -> Sync | None:
    return norms[0].sync if norms and norms[0].training else None


def _usual(op: str, xs: Sequence[Tensor], modules: Sequence[nn.Module], norms: list[BatchNorm], backend: str) -> bool:
    """Return whether a fused kernel can compute what the modules would.

    Nobody listens to them, all BatchNorms share mode and settings, and the call is neither traced nor empty.
    """
    settings = {(n.training, n.momentum, n.eps, n.affine, n.track_running_stats) for n in norms}
    if len(settings) > 1 or None in {n.momentum for n in norms}:
        return False
    if torch.jit.is_tracing() or not xs[0].numel():
        return False
    if global_hooks() or any(has_hooks(m) for module in modules for m in module.modules()):
        return False
    return fits(op, backend, xs[0].device, backends.arithmetic(xs[0]))

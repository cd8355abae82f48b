"""The cells of DARTS' network with fixed operations: one forward for genotypes of pairs, one for FairDARTS' triples.

Notation: N images, C channels of a node, H W pixels of the second input.
"""

from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.networks.fused import FusedNodes, Gene, built, fused_layers
from fastdarts.networks.operations import FactorizedReduce, ReLUConvBN, operation
from fastdarts.spaces import Kind
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet.candidates import stride_of


class DiscreteCell(nn.Module):
    """Two preprocess layers, then nodes of two genes each, `_ops.GENE`; drop path per gene.

    reduction_prev  the first input is twice as large and is halved here
    multiplier      number of concatenated states: the output has multiplier * C channels
    drops           number of factors that drop path draws for each image
    backend         of ops.relu_conv_bn and ops.mixed_cell, which compute the preprocess layers and all operations in one call
                    each where they can (see networks.fused); else the modules compute them one by one
    """

    def __init__(self, genotype: Genotype, kind: Kind, C_prev_prev: int, C_prev: int, C: int, reduction_prev: bool) -> None:
        super().__init__()
        self.preprocess0 = FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self.genes = genotype.genes(kind)
        states = {0, 1} | {node for _, node, _ in self.genes}
        self.concat = tuple(state for state in getattr(genotype, f"{kind}_concat") if state in states)
        if kind == "reduce" and min(self.concat) < 2:
            raise ValueError(f"reduce cell: concatenates its input {min(self.concat)}, which is twice as large as its nodes")
        self.multiplier = len(self.concat)
        self.backend = "auto"
        genes = self._build(kind, C)
        self.drops = len({gene.drop for gene in genes} - {None})
        self.fused = FusedNodes(2, genes, self, C)
        self._built = [built(self.preprocess0), built(self.preprocess1)]

    def _build(self, kind: Kind, C: int) -> list[Gene]:
        """Build the operations; return them as genes."""
        self._ops = nn.ModuleList(operation(op, C, stride_of(kind, state)) for op, _, state in self.genes)
        dropped = count()
        return [
            Gene(name, state, node, stride_of(kind, state), f"_ops.{i}", None if isinstance(op, nn.Identity) else next(dropped))
            for i, ((name, node, state), op) in enumerate(zip(self.genes, self._ops, strict=True))
        ]

    def forward(self, s0: Tensor, s1: Tensor, factors: Tensor | None = None) -> Tensor:
        """s0, s1: outputs of the two previous cells; factors (drops, N, 1, 1, 1): drop path's, None outside training.

        Returns (N, multiplier * C, H', W') with H' W' of s1, halved in a reduction cell.
        """
        layers = self.preprocess0, self.preprocess1
        fused = fused_layers(layers, self._built, (s0, s1), self.backend)
        inputs = [layer(s) for layer, s in zip(layers, (s0, s1), strict=True)] if fused is None else list(fused)
        factors = None if factors is None else factors.to(inputs[1].dtype)
        out = self.fused(self, inputs, factors, self.backend)
        if out is not None and self.concat == self.fused.nodes:
            return out
        states = dict(enumerate(inputs))
        if out is None:
            self._nodes(states, factors)
        else:
            states |= zip(self.fused.nodes, out.chunk(len(self.fused.nodes), dim=1), strict=True)
        return torch.cat([states[state] for state in self.concat], dim=1)

    def _nodes(self, states: dict[int, Tensor], factors: Tensor | None) -> None:
        """Add the nodes to the states, operation by operation."""
        drop = 0
        for (_, node, state), op in zip(self.genes, self._ops, strict=True):
            out = op(states[state])
            if factors is not None and not isinstance(op, nn.Identity):
                out, drop = out * factors[drop], drop + 1
            states[node] = states[node] + out if node in states else out


class SparseCell(DiscreteCell):
    """FairDARTS' cell: nodes of any number of genes, `_ops.NODE.INPUT.GENE`; drop path per node."""

    def _build(self, kind: Kind, C: int) -> list[Gene]:
        nodes: dict[str, dict[str, list[nn.Module]]] = {}
        genes = []
        for op, node, state in self.genes:
            stride = stride_of(kind, state)
            of_node = nodes.setdefault(str(node), {})
            of_edge = of_node.setdefault(str(state), [])
            genes.append(Gene(op, state, node, stride, f"_ops.{node}.{state}.{len(of_edge)}", list(nodes).index(str(node))))
            of_edge.append(operation(op, C, stride))
        edges = {
            node: nn.ModuleDict({state: nn.ModuleList(ops) for state, ops in inputs.items()}) for node, inputs in nodes.items()
        }
        self._ops = nn.ModuleDict(edges)
        return genes

    def _nodes(self, states: dict[int, Tensor], factors: Tensor | None) -> None:
        nodes: Any = self._ops
        for number, (node, edges) in enumerate(nodes.items()):
            out = sum(sum(op(states[int(state)]) for op in ops) for state, ops in edges.items())
            states[int(node)] = out if factors is None else out * factors[number]


def cell_of(genotype: Genotype, kind: Kind, C_prev_prev: int, C_prev: int, C: int, reduction_prev: bool) -> DiscreteCell:
    """Return the cell of a kind: a SparseCell where its genes are triples."""
    build = SparseCell if genotype.has_triples(kind) else DiscreteCell
    return build(genotype, kind, C_prev_prev, C_prev, C, reduction_prev)

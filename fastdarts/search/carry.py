"""Carry a stage's network, alpha and optimizers over to the next one, with fewer candidates and wider ones (DrNAS).

Notation: k the divisor of partial channels, Cq = C/k channels of a candidate, E edges, K candidates of the longest list.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.optim.optimizers import load_optimizer, optimizer_state
from fastdarts.search.bilevel import Bilevel
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import Network
from fastdarts.supernet.candidates import edge_names
from fastdarts.supernet.mixed import PackedEdges

Named = dict[str, Tensor]


class Carried:
    """Copies of what a stage has learnt, on the CPU: the next stage may need the device's memory.

    A candidate that was dropped takes its weights, alpha and moments with it. A wider one appends copies of channels drawn from
    its old ones: filters, BatchNorm's statistics and momentum by the same draw, in all of its layers, outputs and inputs alike
    (DrNAS' code draws its layers apart). Copies are not divided by their number, as there: a BatchNorm follows.
    """

    def __init__(self, bilevel: Bilevel) -> None:
        self.space, self.k = bilevel.supernet.space, bilevel.supernet.k
        self.supernet, self.objective = (_copied(m.state_dict()) for m in (bilevel.supernet, bilevel.objective))
        sgd = optimizer_state(bilevel.weight_optimizer)["state"]
        buffers = [sgd.get(i, {}).get("momentum_buffer") for i in range(len(bilevel.weights))]
        pairs = zip(buffers, bilevel.weights, strict=True)
        self.momentum = _copied(_by_name(bilevel, [torch.zeros_like(w) if b is None else b for b, w in pairs]))
        self.parameters = [p.detach().cpu().clone() for p in bilevel.relaxation.parameters()]
        adam = optimizer_state(bilevel.arch_optimizer)["state"]
        self.moments = [_copied(adam.get(i, {})) for i in range(len(self.parameters))]
        self.scale = None if bilevel.precision.scale is None else bilevel.precision.scale.state_dict()

    @torch.no_grad()
    def put_into(self, bilevel: Bilevel, seed: int) -> None:
        """Continue in the next stage's Bilevel: its space has some of the candidates, in their order, and k is not larger.

        seed  of the draw of channels
        """
        supernet, after = bilevel.supernet, bilevel.supernet.space
        widen = Widening(self.space, self.k, supernet, seed)
        supernet.load_state_dict({name: widen(name, self.supernet, like) for name, like in supernet.state_dict().items()})
        bilevel.objective.load_state_dict(self.objective)
        buffers = [torch.zeros_like(w) for w in bilevel.weights]
        for name, buffer in _by_name(bilevel, buffers).items():
            buffer.copy_(widen(name, self.momentum, buffer))
        _load(bilevel.weight_optimizer, [{"momentum_buffer": buffer} for buffer in buffers])
        alphas = [kept_places(self.space, after, kind) for kind in after.kinds]
        chosen = [
            _chosen({"": p} | m, alphas[i : i + 1]) for i, (p, m) in enumerate(zip(self.parameters, self.moments, strict=True))
        ]
        for parameter, named in zip(bilevel.relaxation.parameters(), chosen, strict=True):
            parameter.copy_(named.pop(""))
        _load(bilevel.arch_optimizer, chosen)
        if bilevel.precision.scale is not None and self.scale is not None:
            bilevel.precision.scale.load_state_dict(self.scale)


class Draw(NamedTuple):
    """Old channels by new channel: of a whole candidate, and of either half of a strided skip's output."""

    whole: Tensor
    halves: tuple[Tensor, Tensor]


class Edges(NamedTuple):
    """The edges of a cell: old and new Cq, and for each edge the former places of its candidates."""

    old: int
    new: int
    places: list[list[int]]


class Widening:
    """Tensors of the last stage's network in the form of the next one's, by the names that checkpoints have."""

    def __init__(self, before: Space, k: int, supernet: Network, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.draws: dict[str, Draw] = {}
        self.names = edge_names(supernet.space)
        self.edges: dict[str, Edges] = {}  # by path
        for path, cell in supernet.named_modules():
            for name, part in cell.named_children():
                if isinstance(part, PackedEdges):
                    kind: Any = cell.kind
                    places = kept_places(before, supernet.space, kind).tolist()
                    self.edges[f"{path}.{name}"] = Edges(part.C // k, part.C // part.k, places)

    def __call__(self, name: str, before: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Return the tensor of that name, of like's shape, from all tensors of the last stage."""
        path = next((p for p in self.edges if name.startswith(f"{p}.")), None)
        if path is None:
            return before[name]
        edges, parts, depth = self.edges[path], name[len(path) + 1 :].split("."), self.names[0].count(".") + 1
        edge, place, rest = parts[:depth], int(parts[depth]), parts[depth + 1 :]
        candidate = ".".join([path, *edge, str(edges.places[self.names.index(".".join(edge))][place])])
        tensor = before[".".join([candidate, *rest])]
        if not tensor.dim():  # a counter
            return tensor
        draw = self._draw(candidate, edges)
        first, second = draw.halves
        of_skip = {"conv_1": first, "conv_2": second, "bn": torch.cat([first, edges.old // 2 + second])}
        tensor = tensor.index_select(0, of_skip.get(rest[0], draw.whole).to(tensor.device))
        return tensor.index_select(1, draw.whole) if tensor.dim() == 4 and like.shape[1] > 1 else tensor

    def _draw(self, candidate: str, edges: Edges) -> Draw:
        def drawn(old: int, new: int) -> Tensor:
            return torch.cat([torch.arange(old), torch.randint(max(old, 1), (new - old,), generator=self.generator)])

        if candidate not in self.draws:
            halves = edges.old // 2, edges.new // 2
            self.draws[candidate] = Draw(drawn(edges.old, edges.new), (drawn(*halves), drawn(*halves)))
        return self.draws[candidate]


def kept_places(before: Space, after: Space, kind: Kind) -> Tensor:
    """Return for each edge the former places of its candidates: int64 (E, K) with the K of `after`; padding is 0."""
    lists = zip(before.candidates(kind), after.candidates(kind), strict=True)
    rows = [[old.index(name) for name in new] for old, new in lists]
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _chosen(tensors: Named, places: list[Tensor]) -> Named:
    """Return the columns at `places` of alpha and its moments; without places, of beta, everything."""
    return {name: t.gather(1, places[0]) if places and t.dim() == 2 else t for name, t in tensors.items()}


def _by_name(bilevel: Bilevel, tensors: list[Tensor]) -> Named:
    """Return tensors that are like the weights, by name: packed ones as views by the names that checkpoints have."""
    of = {id(w): t for w, t in zip(bilevel.weights, tensors, strict=True)}
    packed = {path: m for path, m in bilevel.supernet.named_modules() if isinstance(m, PackedEdges)}
    found: Named = {}
    for name, parameter in bilevel.supernet.named_parameters():
        path, _, last = name.rpartition(".")
        views = packed[path].unpacked(of[id(parameter)]) if path in packed and last == "weights" else None
        found |= {name: of[id(parameter)]} if views is None else {f"{path}.{n}": t for n, t in views.items()}
    return found | {f"objective {name}": of[id(p)] for name, p in bilevel.objective.named_parameters()}


def _load(optimizer: torch.optim.Optimizer, states: list[Named]) -> None:
    """Replace the state of each parameter, in the optimizer's order."""
    saved = optimizer_state(optimizer)
    load_optimizer(optimizer, saved | {"state": {i: state for i, state in enumerate(states) if state}})


def _copied(tensors: Mapping[str, Tensor]) -> Named:
    return {name: t.detach().cpu().clone() for name, t in tensors.items()}

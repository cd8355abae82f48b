"""Random calls of ops.mixed_cell: graphs, tensors of a size, and what a backend makes of them."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastdarts.kernels.graph import DENSE, Candidate, Edge, Graph
from fastdarts.ops.mixed_cell import mixed_cell
from fastdarts.ops.sync import Sync
from tests.ops.exactness import Named, assert_exact, double, gradients, uninitialised_memory_is_nan

S0 = tuple(map(Candidate, range(8)))
EVERY = tuple(Candidate)
STRIDED = tuple(c for c in EVERY if c not in DENSE)
Images = Literal["normal", "masked", "shifted"]


def one_edge(*candidates: Candidate, stride: int = 1) -> Graph:
    return Graph(1, 1, (Edge(0, 0, stride, candidates),))


def dense(nodes: int, stride: int = 1, candidates: tuple[Candidate, ...] = S0, inputs: int = 2) -> Graph:
    """A DARTS cell: each node reads every earlier state."""
    edges = [
        Edge(state, node, stride if state < inputs else 1, candidates)
        for node in range(nodes)
        for state in range(inputs + node)
    ]
    return Graph(inputs, nodes, tuple(edges))


@dataclass(frozen=True)
class CellCall:
    """One call with random tensors.

    images    "normal": N(0, 1). "masked": whole 4x4 patches of half of each image are one constant. "shifted": each channel's
              mean is 1e3 times its standard deviation
    mixing    weights of candidates and edges are N(0, 1), and some are exactly 0; so are some convolution weights
    edges     weights of the edges are given; "images": of each image
    affine    BatchNorms have affine parameters, some scales are exactly 0
    chosen    random channels
    running   running statistics are given
    """

    graph: Graph
    N: int = 3
    C: int = 8
    H: int = 8
    W: int = 8
    k: int = 1
    images: Images = "normal"
    edges: bool | Literal["images"] = True
    chosen: bool = False
    running: bool = True
    training: bool = True
    channels_last: bool = True
    eps: float = 1e-5
    seed: int = 0
    affine: bool = False

    def tensors(self, dtype: torch.dtype = torch.float32) -> Named:
        """Differentiated tensors: inputs, ops, edges (if any), weights, affine (if any)."""
        g = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int, zeros: float = 0.0) -> Tensor:
            values = torch.randn(*shape, generator=g, dtype=torch.float64)
            return torch.where(torch.rand(*shape, generator=g) < zeros, 0.0, values)

        E, Cq = len(self.graph.edges), self.C // self.k
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        named = {f"input {i}": self._image(normal).contiguous(memory_format=layout) for i in range(self.graph.inputs)}
        named["ops"] = normal(E, self.graph.longest + 1, zeros=0.2)  # one column more than anybody has
        if self.edges is True:
            named["edges"] = normal(E, zeros=0.2)
        shapes = self.graph.convolutions(Cq)
        # of the size that a fan-in rule gives, so that no candidate drowns the others
        kernels = [normal(*s, zeros=0.1).flatten() * (s[1] * s[2] * s[3]) ** -0.5 for s in shapes]
        named["weights"] = torch.cat(kernels) if kernels else torch.empty(0, dtype=torch.float64)
        if self.affine:
            named["affine"] = normal(2, self.graph.norms * Cq, zeros=0.1)
        return {name: t.to(dtype).requires_grad_() for name, t in named.items()}

    def edge_weights(self, tensors: Named) -> Tensor | None:
        """Those given: of each edge, or of each of its images, as drop path's factors."""
        if self.edges != "images":
            return tensors.get("edges")
        g = torch.Generator().manual_seed(self.seed + 2)
        return 0.5 * torch.randint(-1, 4, (len(self.graph.edges), self.N), generator=g).to(tensors["ops"])

    def _image(self, normal) -> Tensor:
        x = normal(self.N, self.C, self.H, self.W)
        if self.images == "masked":
            hidden = normal(self.N, 1, -(-self.H // 4), -(-self.W // 4)) > 0
            hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, : self.H, : self.W]
            x = torch.where(hidden, normal(1, self.C, 1, 1), x)
        return x + 1e3 if self.images == "shifted" else x

    def constants(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
        """Running mean and variance, channels, and the output's gradient."""
        g = torch.Generator().manual_seed(self.seed + 1)
        E, Cq, s = len(self.graph.edges), self.C // self.k, self.graph.stride
        B = self.graph.norms * Cq
        mean, var = (
            0.3 * torch.randn(B, generator=g, dtype=torch.float64),
            0.5 + torch.rand(B, generator=g, dtype=torch.float64),
        )
        picks = torch.stack([torch.randperm(self.C, generator=g)[:Cq] for _ in range(E)])
        size = self.N, self.graph.nodes * self.C, self.H // s, self.W // s
        return {
            "mean": mean.to(dtype) if self.running else None,
            "var": var.to(dtype) if self.running else None,
            "channels": picks if self.chosen and self.k > 1 else None,
            "grad": torch.randn(size, generator=g, dtype=torch.float64).to(dtype),
        }

    def run(self, tensors: Named, backend: str, dtype: torch.dtype) -> Named:
        """The output, the running statistics after it, and every gradient."""
        rest = self.constants(dtype)
        running = (rest["mean"], rest["var"]) if self.running else None
        out = self.forward(tensors, running, rest["channels"], backend)
        result = {"out": out.detach().clone()}
        if running:
            result |= {"mean": running[0], "var": running[1]}
        return result | gradients(out, rest["grad"], tensors)

    def forward(
        self, tensors: Named, running: tuple | None, channels: Tensor | None, backend: str, sync: Sync | None = None
    ) -> Tensor:
        return mixed_cell(
            [tensors[f"input {i}"] for i in range(self.graph.inputs)],
            tensors["ops"],
            self.edge_weights(tensors),
            tensors["weights"],
            running,
            channels,
            affine=tensors.get("affine"),
            graph=self.graph,
            partial_channels=self.k,
            training=self.training,
            eps=self.eps,
            backend=backend,
            sync=sync,
        )

    def check(self, backend: str, dtype: torch.dtype = torch.float32) -> None:
        """Raise AssertionError unless the backend is exact, in memory that is NaN before it is written."""
        tensors = self.tensors(dtype)
        with uninitialised_memory_is_nan():
            got = self.run(tensors, backend, dtype)
        if dtype == torch.float64:
            assert_exact(got, [], self.run(tensors, "definition", dtype), dtype)
            return
        layouts = (self.but(channels_last=flag) for flag in (False, True))
        eager = [call.run(call.tensors(dtype), "definition", dtype) for call in layouts]
        assert_exact(got, eager, self.run(double(tensors), "definition", torch.float64), dtype)

    def but(self, **changes) -> "CellCall":
        return replace(self, **changes)

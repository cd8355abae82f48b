"""The mixed operation of another codebase: its known candidates as one fused call, the others run eagerly.

Notation: N images, C channels, Cq = C/k that pass through the candidates, K candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.interop.candidates import Candidates, fits
from fastdarts.interop.classes import PLAN, Before
from fastdarts.interop.parts import alike, run
from fastdarts.interop.reads import Reads
from fastdarts.interop.recognise import FusableCandidate
from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.module_hooks import global_hooks

NOT_TRACED = "fastdarts checks every layer before a fused call: if traced, each check is a guard and each size recompiles"
Attributes = tuple[tuple[str, int], ...]
Weights = Tensor | Sequence[Tensor | float]


@dataclass
class MixturePlan(Candidates):
    """Verified facts of a mixed operation.

    name         of its list of candidates
    skips_zeros  candidates of weight 0 are not computed: their norms are not updated, their parameters get no gradient
    positive     only rows of positive weights match a mixed operation (GAEA ignores the others): for other rows the class' own
                 forward runs
    divisor      k: only the first C/k channels pass through the candidates
    longer       a row may have more weights than there are candidates: the rest is ignored
    channels_last  memory format of the network's images, which unconverted modules see: they may draw random numbers in it
    reads        verified dependencies of its forward besides its arguments: if any differs, its own forward runs
    attributes   those of them that may be k
    """

    name: str
    skips_zeros: bool = False
    positive: bool = False
    divisor: int = 1
    longer: bool = False
    backend: str = "auto"
    channels_last: bool = False
    reads: Reads | None = None
    attributes: Attributes = ()

    def candidates(self, module: nn.Module) -> list[nn.Module]:
        """Return the candidates. Raises KeyError if the list has gone."""
        listed: Any = module._modules[self.name]
        return list(listed._modules.values())

    def unchanged(self, module: nn.Module, k: int) -> bool:
        """Return whether the forward's dependencies have their verified values; attributes that held k may hold the new k."""
        own = vars(module)
        for name, value in self.attributes:
            now = own.get(name)
            if type(now) is not int or (now != value and not (1 < self.divisor == value and now == k)):
                return False
        return self.reads is None or self.reads.same(module)

    def takes(self, length: int) -> bool:
        """Return whether a row of this length is valid."""
        return length == len(self.layouts) or (self.longer and length > len(self.layouts))

    @property
    def whole(self) -> bool:
        """Return whether all candidates are fused, all different operations, and none has dropout."""
        codes = {a.code for a in self.layouts if isinstance(a, FusableCandidate)}
        return len(codes) == len(self.layouts) and not any(d.p for f in self.found if f is not None for d in f.dropouts)

    @property
    def channels(self) -> int:
        """Return Cq, or 0 if no candidate determines it."""
        return next((a.channels for a in self.layouts if isinstance(a, FusableCandidate) and a.channels), 0)

    @property
    def stride(self) -> int:
        """Return 1 or 2, or 0 if the candidates' strides differ."""
        strides = {a.stride for a in self.layouts if isinstance(a, FusableCandidate)}
        return strides.pop() if len(strides) == 1 else 0


class FusedMixture(Before):
    """Mixin in front of a converted mixed operation's class."""

    def forward(self, x: Tensor, weights: Weights, *args: Any, **kwargs: Any) -> Tensor:
        """Return the weighted sum of x (N, C, H, W) by weights, (K,) or K numbers; others run the class' own forward."""
        out = None if args or kwargs or global_hooks() else _fused(self, x, weights)
        if out is not None:
            return out
        return super().forward(x.contiguous(memory_format=format_of(self.__dict__[PLAN])), weights, *args, **kwargs)


@torch.compiler.disable(reason=NOT_TRACED)
def _fused(module: nn.Module, x: Tensor, weights: Weights) -> Tensor | None:
    """Return None if the module's own forward has to run."""
    plan: MixturePlan = module.__dict__[PLAN]
    try:
        found: list[Any] = plan.update(module)  # of the fused ones: Layers
    except KeyError:
        return None
    row = as_row(weights, x)
    if row is None or not plan.takes(len(row)):
        return None
    row = row[: len(plan.layouts)]
    values = row.tolist() if plan.skips_zeros or plan.positive else [1.0] * len(row)
    if plan.positive and not all(value > 0 for value in values):
        return None
    candidates = plan.candidates(module)
    live = [i for i, value in enumerate(values) if value != 0]
    layouts: list[Any] = plan.layouts  # of the fused ones: FusableCandidate
    fused = [i for i in live if fits(candidates[i], layouts[i], found[i])]
    fused = first_of_each(fused, layouts)
    k = partial_channels(plan, x)
    if not k or not plan.unchanged(module, k):
        return None
    eager = [i for i in live if i not in fused]
    if (k > 1 and eager) or not any(layouts[i].code != Candidate.NONE for i in fused) or not plan.stride:
        return None
    if not alike([found[i] for i in fused], x) or not even(plan.stride, x):
        return None
    graph = edge_graph(plan.stride, tuple(layouts[i].code for i in fused))
    ops = (row if len(fused) == len(row) else row[fused])[None]
    out = run([found[i] for i in fused], [x], ops, None, graph, k, plan.backend)
    x = x.contiguous(memory_format=format_of(plan))
    for i in eager:
        out = out + row[i] * candidates[i](x)
    return out


def even(stride: int, x: Tensor) -> bool:
    """Return whether a stride of 2 halves the images x (N, C, H, W)."""
    return stride == 1 or not (x.shape[2] % 2 or x.shape[3] % 2)


def first_of_each(indices: list[int], layouts: Sequence[Any]) -> list[int]:
    """Return the first of the candidates that are the same operation: one call computes each once."""
    seen: dict[Candidate, int] = {}
    for i in indices:
        seen.setdefault(layouts[i].code, i)
    return [i for i in indices if seen[layouts[i].code] == i]


def format_of(plan: Any) -> torch.memory_format:
    """Return the memory format of the network's images."""
    return torch.channels_last if plan.channels_last else torch.contiguous_format


def partial_channels(plan: MixturePlan, x: Tensor) -> int:
    """Return k, or 0 if x does not fit the candidates."""
    Cq, C = plan.channels or x.shape[1], x.shape[1]
    if C % Cq or (Cq != C and plan.divisor == 1):
        return 0
    return C // Cq


def as_row(weights: Weights, x: Tensor) -> Tensor | None:
    """Return the weights as one tensor (K,) on x' device, or None for anything else."""
    if isinstance(weights, Tensor):
        row = weights if weights.dim() == 1 else None
    elif isinstance(weights, list | tuple) and weights and all(_number(w) for w in weights):
        row = torch.stack([torch.as_tensor(w, device=x.device, dtype=_dtype(w, x)).reshape(()) for w in weights])
    else:
        return None
    if row is None or not row.is_floating_point():
        return None
    if row.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        return None
    return row.to(x.device)


def _number(value: Any) -> bool:
    return isinstance(value, float | int) or (isinstance(value, Tensor) and value.numel() == 1)


def _dtype(value: Tensor | float, x: Tensor) -> torch.dtype:
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else x.dtype


@lru_cache(maxsize=1024)
def edge_graph(stride: int, codes: tuple[Candidate, ...]) -> Graph:
    """Return one edge as a graph; cached, since each call needs it."""
    return Graph(1, 1, (Edge(0, 0, stride, codes),))


def mixtures(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all submodules, by name, that hold one list of at least two modules; mixed operations are among them."""
    for name, inner in module.named_modules():
        listed = list_of(inner)
        if listed is not None and len(inner._modules[listed]) > 1:
            yield name, inner


def listing(module: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return name and modules of the only list of a module (see `mixtures`). Raises KeyError without exactly one."""
    name = list_of(module)
    if name is None:
        raise KeyError("a list of modules")
    listed: Any = module._modules[name]
    return name, list(listed)


def list_of(module: nn.Module) -> str | None:
    """Return the name of the only non-empty list of modules."""
    lists = [n for n, child in module._modules.items() if isinstance(child, nn.ModuleList) and len(child)]
    return lists[0] if len(lists) == 1 else None

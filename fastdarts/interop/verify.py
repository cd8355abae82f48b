"""Compare a converted network with its original: the largest differences, and the speedup."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from fastdarts.interop.conversion import revert

SHOWN = 5  # number of gradients printed
Arch = Callable[[nn.Module], Iterable[Tensor]]


@dataclass(frozen=True)
class Comparison:
    """Largest differences, each relative to the largest number of its tensor, and seconds of forward and backward.

    output      of the network's output
    parameters  of each Parameter's gradient, by name
    arch        of the gradient of each tensor of architecture weights, in order
    statistics  of each buffer after the forward, by name
    own, converted  medians of a forward and backward, in seconds
    """

    output: float
    parameters: dict[str, float]
    arch: list[float]
    statistics: dict[str, float]
    own: float
    converted: float

    @property
    def ratio(self) -> float:
        """Return the speedup of the converted network."""
        return self.own / self.converted

    def __str__(self) -> str:
        worst = sorted(self.parameters.items(), key=lambda pair: -pair[1])[:SHOWN]
        lines = [f"output                  {self.output:.1e}"]
        lines += [f"gradient of weights {i}   {value:.1e}" for i, value in enumerate(self.arch)]
        lines += [f"gradients of {len(self.parameters)} parameters, largest first:"]
        lines += [f"    {value:.1e}  {name}" for name, value in worst]
        if self.statistics:
            name, value = max(self.statistics.items(), key=lambda pair: pair[1])
            lines.append(f"running statistics      {value:.1e}  {name}")
        seconds = f"{1e3 * self.own:.1f} ms before, {1e3 * self.converted:.1f} ms converted"
        return "\n".join([*lines, f"forward and backward    {seconds}: {self.ratio:.2f} times faster"])


def verify(model: nn.Module, x: Tensor, *, arch: Arch | None = None, rounds: int = 5, show: bool = True) -> Comparison:
    """Run a converted network and a reverted copy of it on x, in its current mode; `model` itself stays unchanged.

    x       the network's input
    arch    the network's tensors of architecture weights; default: its arch_parameters(), if it has such a method
    rounds  number of timed rounds for the medians, alternating
    show    also print the comparison
    In float32 the two differ by rounding, and where a ReLU's input is that close to 0 a gradient flips; in float64
    (model.double()) they agree to about 1e-12.
    Raises ConvertError for a network that is not converted.
    """
    own, converted = deepcopy(model), deepcopy(model)
    revert(own)
    arch = arch or _arch_parameters
    results = []
    for network in (own, converted):
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(0)
            results.append(_outcome(network, x, list(arch(network))))
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for network, times in zip((own, converted), seconds, strict=True):
            times.append(_timed(network, x))
    before, after = results
    figures = [{name: _apart(a, after[part][name]) for name, a in before[part].items()} for part in range(4)]
    output, parameters, weights, statistics = figures
    comparison = Comparison(output["output"], parameters, list(weights.values()), statistics, *map(median, seconds))
    if show:
        print(comparison)
    return comparison


def _arch_parameters(model: nn.Module) -> Iterable[Tensor]:
    method = getattr(model, "arch_parameters", None)
    return method() if callable(method) else ()


def _outcome(model: nn.Module, x: Tensor, arch: list[Tensor]) -> tuple[dict[str, Tensor], ...]:
    """Return the output, the gradients of parameters and architecture weights, and the buffers."""
    own = {id(a) for a in arch}
    for t in (*model.parameters(), *arch):
        t.grad = None
    out = _first(model(x))
    _loss(out).backward()
    parameters = {n: _grad(p) for n, p in model.named_parameters() if id(p) not in own}
    statistics = {n: b.detach().clone() for n, b in model.named_buffers() if b.is_floating_point()}
    return {"output": out.detach()}, parameters, {str(i): _grad(a) for i, a in enumerate(arch)}, statistics


def _timed(model: nn.Module, x: Tensor) -> float:
    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    wait()
    began = perf_counter()
    _loss(_first(model(x))).backward()
    wait()
    return perf_counter() - began


def _loss(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)).sum()


def _first(out: Tensor | tuple | list) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _grad(t: Tensor) -> Tensor:
    return torch.zeros_like(t) if t.grad is None else t.grad.clone()


def _apart(a: Tensor, b: Tensor) -> float:
    scale = a.abs().max().item() if a.numel() else 0.0
    return (a - b).abs().max().item() / (scale or 1.0) if a.numel() else 0.0

"""What an entry of the zoo says of its network, and the bilevel steps that any of them is moved by.

A step of the driver: the events due, then alpha on the validation images, then the weights on the training images. All images
and all draws follow from the seed, so that a network and a converted copy of it see the same.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

CLASSES = 10


def adam(alpha: list[Tensor]) -> Optimizer:
    return Adam(alpha, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)


def unchanged(model: nn.Module, x: Tensor, y: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Event:
    """`act(model, x, y)` before step `step`, on the step's validation images; what it returns by name is compared too.

    It may replace the model's weights (the driver then makes a new SGD), or write into them or alpha.
    """

    step: int
    what: str
    act: Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor] | None]


def event(step: int, what: str, method: str, *arguments: Any) -> Event:
    """A call of the model's method."""
    return Event(step, what, lambda model, x, y: getattr(model, method)(*arguments))


@dataclass(frozen=True)
class Entry:
    """One codebase, small.

    network()          the network: forward(x) takes (N, 3, side, side) and gives logits (N, 10); draws from torch's generator
    fuses              the most that a conversion may fuse without changing results: whole "cell"s, since their forward is the
                       customary one; each mixed "op", since its forward is sum(w * op(x)) but its cell does more (or its
                       candidates draw numbers); or nothing: "left alone"
    why                the reason in a few words
    events             what happens before which step
    outer(alpha)       the optimizer of alpha
    inner(model, x, y) a context in which the weights' step on x, y runs (SDARTS perturbs alpha there)
    """

    name: str
    network: Callable[[], nn.Module]
    fuses: Literal["cell", "op", "left alone"]
    why: str
    events: tuple[Event, ...] = ()
    side: int = 16
    outer: Callable[[list[Tensor]], Optimizer] = adam
    inner: Callable[[nn.Module, Tensor, Tensor], AbstractContextManager[None]] = unchanged

    def make(self, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The network in train mode, its weights, buffers and alpha of `dtype`; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]), default_dtype(dtype):
            torch.manual_seed(seed)
            return self.network().train()

    def arch(self, model: nn.Module) -> list[Tensor]:
        """What Adam moves."""
        return list(model.arch_parameters())

    def weights(self, model: nn.Module) -> list[nn.Parameter]:
        """What SGD moves: all Parameters that are not alpha."""
        alpha = {id(a) for a in self.arch(model)}
        return [p for p in model.parameters() if id(p) not in alpha]

    @property
    def length(self) -> int:
        """The least number of steps that sees every event, at least two."""
        return 1 + max((event.step for event in self.events), default=1)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Layers and alpha made inside are of `dtype`; `model.new()` of a float64 network wants this too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def images(seed: int, side: int, dtype: torch.dtype, count: int = 3) -> tuple[Tensor, Tensor]:
    """(count, 3, side, side) of N(0, 1), and labels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, side, side, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, CLASSES, (count,), generator=g)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def bilevel_steps(model: nn.Module, entry: Entry, count: int, seed: int) -> dict[str, Tensor]:
    """`count` first-order bilevel steps of `model` in place.

    Returns copies of all that they moved: the state_dict's entries by name, `alpha i`, the losses `step i train` and
    `step i valid`, and what events gave, `step i NAME`. Torch's generator is left as it was.
    """
    alpha = entry.arch(model)
    outer, inner = entry.outer(alpha), sgd(entry.weights(model))
    dtype = alpha[0].dtype
    seen: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        for step in range(count):
            train, valid = (images(seed * 10_000 + 2 * step + i, entry.side, dtype) for i in range(2))
            torch.manual_seed(seed * 10_000 + step)
            given = [event.act(model, *valid) or {} for event in entry.events if event.step == step]
            weights = entry.weights(model)
            if {id(p) for p in weights} != {id(p) for p in inner.param_groups[0]["params"]}:
                inner = sgd(weights)
            losses = {"valid": arch_step(model, outer, *valid), "train": weight_step(model, entry, inner, *train)}
            for named in (*given, losses):
                seen |= {f"step {step} {name}": value for name, value in named.items()}
    seen |= model.state_dict() | {f"alpha {i}": a for i, a in enumerate(alpha)}
    return {name: value.detach().clone() for name, value in seen.items()}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, str]:
    """The largest |a - b| relative to the tensor's largest entry, and the tensor's name.

    Largest entries below 1e-6 count as that: such a tensor may be nothing but rounding.
    Raises ValueError where names or shapes differ.
    """
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        raise ValueError("the two runs moved tensors of other names or shapes")
    scales = {name: max(float(t.abs().max()), 1e-6) for name, t in a.items()}
    return max((float((t - b[name]).abs().max()) / scales[name], name) for name, t in a.items())


def sgd(weights: list[nn.Parameter]) -> SGD:
    return SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)


def arch_step(model: nn.Module, outer: Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """As the customary architects do it: backward through everything, alpha's optimizer steps."""
    outer.zero_grad()
    loss = loss_of(model, x, y)
    loss.backward()
    outer.step()
    return loss


def weight_step(model: nn.Module, entry: Entry, inner: SGD, x: Tensor, y: Tensor) -> Tensor:
    with entry.inner(model, x, y):
        inner.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in inner.param_groups for p in group["params"]], 5)
        inner.step()
    return loss

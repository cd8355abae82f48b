"""Verify that a converted module matches its own class: both run on copies, on small random inputs in float64.

Notation: N images, C channels, E edges, K candidates.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

N, SIDE = 2, 8
# of float64; eps of BatchNorm makes the numbers ill-conditioned by 1e3 or so
CLOSE: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
DRAWN = "the state of the random numbers"
SOFT, HOT, LISTS = "weights of a softmax", "one-hot weights", "weights as lists"
Arguments = tuple[Any, ...]
Outcome = dict[str, Tensor]


class Differs(ValueError):
    """The two differ; the message says where."""


@contextmanager
def isolated_state(device: torch.device) -> Generator[None]:
    """Use a separate random seed inside the context; the generators outside are unchanged."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        yield


def copy_of(module: nn.Module) -> nn.Module:
    """Return deepcopy(module) in half the time: a module's many empty hook dictionaries are not copied one by one."""
    inner = list(module.modules())
    memo: dict[int, Any] = {id(m): type(m).__new__(type(m)) for m in inner}
    for m in inner:
        memo[id(m)].__dict__ = {
            name: value.copy() if isinstance(value, dict) and not value else deepcopy(value, memo)
            for name, value in vars(m).items()
        }
    return memo[id(module)]


def double(module: nn.Module) -> nn.Module:
    """Return a copy in float64 with dropout disabled."""
    copied = copy_of(module).double()
    for inner in copied.modules():
        if isinstance(inner, nn.Dropout | nn.Dropout2d):
            inner.p = 0.0
    return copied


class Subject:
    """A module to verify, as a copy in float64."""

    def __init__(self, module: nn.Module) -> None:
        self.module = double(module)
        self.parameters, self.buffers = list(self.module.named_parameters()), list(self.module.named_buffers())

    def outcome(self, arguments: Arguments, training: bool) -> Outcome:
        """Return the output, the gradients of arguments and parameters, and the buffers afterwards, which are then restored."""
        if self.module.training != training:
            self.module.train(training)
        torch.manual_seed(0)  # for modules that draw random numbers
        args, before = _leaves(arguments), [b.clone() for _, b in self.buffers]
        out = self.module(*args)
        if not isinstance(out, Tensor):
            raise Differs(f"its forward returns {type(out).__name__}, not a tensor")
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape).sin()
        if out.requires_grad:
            (out * weights).sum().backward()
        named = {"the output": out.detach(), DRAWN: torch.get_rng_state()}
        for name, p in (*_named(args), *self.parameters):
            if p.grad is not None:
                named[f"the gradient of {name}"], p.grad = p.grad, None
        for (name, b), saved in zip(self.buffers, before, strict=True):
            named[f"buffer {name}"] = b.clone()
            b.copy_(saved)
        return named


def compare(own: Outcome, converted: Outcome, where: str) -> None:
    """Raise Differs at the first difference, naming it. A missing gradient equals zeros."""
    names = list(own.keys() | converted.keys())
    before = [own[n] if n in own else torch.zeros_like(converted[n]) for n in names]
    theirs = [converted[n] if n in converted else torch.zeros_like(own[n]) for n in names]
    for name, a, b in zip(names, before, theirs, strict=True):
        if a.shape != b.shape:
            raise Differs(f"{name} has shape {tuple(b.shape)} instead of {tuple(a.shape)} {where}")
    flat = [torch.cat([t.reshape(-1).double() for t in side]) for side in (before, theirs)]
    if not torch.allclose(flat[0], flat[1], **CLOSE):
        name = next(
            n for n, a, b in zip(names, before, theirs, strict=True) if not torch.allclose(a.double(), b.double(), **CLOSE)
        )
        raise Differs("it draws random numbers" if name == DRAWN else f"{name} differs {where}")


def try_out(subject: Subject, cases: dict[str, Arguments], convert: Callable[[nn.Module], None]) -> None:
    """Raise Differs unless the module gives the same results in every case after convert(module).

    In train and in eval mode; one-hot weights in train mode only, since another case has their zeros; softmax weights only as
    lists if the cases have both forms.
    """
    once = [name for name in cases if not (name == SOFT and LISTS in cases)]
    tried = [(name, True) for name in once] + [(name, False) for name in once if name != HOT]
    own = [subject.outcome(cases[name], training) for name, training in tried]
    convert(subject.module)
    for (name, training), expected in zip(tried, own, strict=True):
        mode = "train" if training else "eval"
        compare(expected, subject.outcome(cases[name], training), f"with {name} in {mode} mode")


def rows(count: int, lengths: list[int], like: Tensor) -> dict[str, Tensor]:
    """Return candidates' weights to verify with, (E, K) each: on the simplex, one-hot, with zeros and negative ones."""
    longest = max(lengths)
    ragged = torch.tensor([[i < n for i in range(longest)] for n in lengths], device=like.device)
    soft = torch.randn(count, longest, dtype=like.dtype, device=like.device).masked_fill(~ragged, -torch.inf).softmax(-1)
    hot = torch.zeros_like(soft)
    for e, n in enumerate(lengths):
        hot[e, (3 * e + 1) % n] = 1.0
    mixed = (soft - 0.1).masked_fill(~ragged, 0.0)
    mixed[:, ::3] = 0.0
    return {SOFT: soft, HOT: hot, "zero and negative weights": mixed}


def _leaves(value: Any) -> Any:
    """Return copies that require gradients."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_() if value.is_floating_point() else value
    return type(value)(map(_leaves, value)) if isinstance(value, list | tuple) else value


def _named(value: Any, name: str = "argument") -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    listed = enumerate(value) if isinstance(value, list | tuple) else ()
    return [pair for i, v in listed for pair in _named(v, f"{name} {i}")]

"""Updates that happen only where loss and gradients are finite, decided on the device: no host waits for the answer.

`bad` is float32 of one element on the device: 1 where an update is to leave everything as it was, else 0.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@torch.no_grad()
def non_finite(loss: Tensor, grads: Iterable[Tensor], inverse: Tensor) -> Tensor:
    """1 if the loss or any gradient holds NaN or an infinity, else 0. The gradients are multiplied by `inverse`, in place.

    loss     one element, any dtype
    inverse  float32 of one element; by 1 no gradient changes
    """
    bad = (~loss.detach().isfinite()).float().view(())
    groups: dict[torch.dtype, list[Tensor]] = {}
    for g in grads:
        groups.setdefault(g.dtype, []).append(g)
    for group in groups.values():
        torch._amp_foreach_non_finite_check_and_unscale_(group, bad, inverse)
    return bad


@torch.no_grad()
def step_if_finite(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """optimizer.step(), of which nothing remains where `bad` is 1: neither in its parameters nor in its state.

    torch's fused SGD and Adam look at `bad` themselves. Any other optimizer steps, and what it changed is put back by
    torch.where; state that it first made in that step becomes 0, a counter it keeps as a Python number stays ahead.
    """
    if not obeys(optimizer):
        return _step_and_undo(bad, optimizer)
    for group in optimizer.param_groups:
        if group.get("momentum"):  # a first step that was skipped would leave SGD's buffers as they were allocated
            for p in group["params"]:
                if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    fused: Any = optimizer
    fused.grad_scale, fused.found_inf = None, bad  # what GradScaler sets, too
    try:
        optimizer.step()
    finally:
        del fused.grad_scale, fused.found_inf


def obeys(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's own kernels take `found_inf`, and zeros are what its state starts from."""
    known = isinstance(optimizer, torch.optim.SGD | torch.optim.Adam)
    return known and all(g["fused"] and not g.get("dampening") for g in optimizer.param_groups)


def _step_and_undo(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    groups = optimizer.param_groups
    params = {f"parameter {i} {j}": p for i, g in enumerate(groups) for j, p in enumerate(g["params"]) if p.grad is not None}

    def tensors() -> dict[str, Tensor]:
        state = {f"{n} {k}": t for n, p in params.items() for k, t in optimizer.state.get(p, {}).items()}
        grouped = {f"group {i} {k}": t for i, g in enumerate(groups) for k, t in g.items() if k not in ("params", "lr")}
        return {n: t for n, t in (params | state | grouped).items() if isinstance(t, Tensor)}

    before = {n: t.detach().clone() for n, t in tensors().items()}
    optimizer.step()
    skipped = bad.bool()
    for name, now in tensors().items():
        old = before.get(name)
        now.copy_(torch.where(skipped.to(now.device), torch.zeros_like(now) if old is None else old, now))


class Buffers:
    """The buffers of modules (BatchNorm's statistics and counters), to be put back where a step is skipped.

    A forward pass that met NaN has moved the running statistics already, and they would stay NaN for good. Where the buffers
    are is found out once, what they are each time: moving modules to another device or dtype makes others.
    """

    def __init__(self, *modules: nn.Module) -> None:
        owners = dict.fromkeys(owner for module in modules for owner in module.modules())
        groups: dict[tuple[torch.dtype, torch.device, bool], list[tuple[nn.Module, str]]] = {}
        for owner in owners:
            for name, b in owner.named_buffers(recurse=False):
                if b.numel():
                    groups.setdefault((b.dtype, b.device, b.dim() == 0), []).append((owner, name))
        self._groups = list(groups.values())

    def kept(self) -> "Kept":
        """A copy of what they are now."""
        groups = [[getattr(owner, name) for owner, name in group] for group in self._groups]
        return Kept(groups, [_joined(group) for group in groups])


class Kept(NamedTuple):
    """Buffers by groups of one dtype and device, and what they were: a few large tensors, a handful of kernels for all."""

    groups: list[list[Tensor]]
    saved: list[Tensor]

    @property
    def floating(self) -> list[Tensor]:
        """The floating-point ones themselves, as they are now."""
        return [b for group in self.groups for b in group if b.is_floating_point()]

    @torch.no_grad()
    def restore_where(self, bad: Tensor) -> None:
        """Make the buffers what they were where `bad` is 1; they keep their addresses."""
        if known(bad) and not bad:
            return
        for group, saved in zip(self.groups, self.saved, strict=True):
            kept = torch.where(bad.bool().to(saved.device), saved, _joined(group))
            torch._foreach_copy_(group, _pieces(kept, group))


def known(bad: Tensor) -> bool:
    """Whether the host may read it without waiting: on a CPU it has been computed when an operator returns."""
    return bad.device.type == "cpu"


@torch.no_grad()
def _joined(group: list[Tensor]) -> Tensor:
    """A copy of all in one tensor. A view of each would take the host longer than the copy: made only where there is need."""
    if group[0].dim() == 0:
        return torch.stack(group)
    return torch.cat([t if t.dim() == 1 else t.reshape(-1) for t in group])


def _pieces(joined: Tensor, group: list[Tensor]) -> list[Tensor]:
    """What `joined` has of each, in its shape."""
    if group[0].dim() == 0:
        return list(joined.unbind())
    pieces = joined.split([t.numel() for t in group])
    return [piece if t.dim() == 1 else piece.view(t.shape) for piece, t in zip(pieces, group, strict=True)]

"""Conditional updates: skip non-finite losses and gradients on the device, without host synchronisation.

`bad` is float32 of one element on the device: 1 skips the update, 0 makes it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from fastdarts.optim.precision import Precision


@torch.no_grad()
def non_finite(loss: Tensor, grads: Iterable[Tensor], inverse: Tensor) -> Tensor:
    """Return 1 if the loss or any gradient holds NaN or an infinity, else 0. Multiplies the gradients by `inverse`, in place.

    loss     one element, any dtype
    inverse  float32 of one element; 1 leaves the gradients unchanged
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
    """Run optimizer.step(), then undo it if `bad` is 1 (parameters and state unchanged).

    torch's fused SGD and Adam read `bad` themselves. For any other optimizer torch.where restores what the step changed;
    state created in that step becomes 0, a counter kept as a Python number is not restored.
    """
    if not obeys(optimizer):
        return _step_and_undo(bad, optimizer)
    for group in optimizer.param_groups:
        if group.get("momentum"):  # skipping the first step would leave SGD's buffers uninitialised
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
    """Return whether the optimizer's kernels take `found_inf` and its state starts from zeros."""
    known = isinstance(optimizer, torch.optim.SGD | torch.optim.Adam)
    return known and all(g["fused"] and not g.get("dampening") for g in optimizer.param_groups)


def capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether step_if_finite runs on the device alone, with a learning rate there: where the optimizer obeys or says so.

    It says so by an attribute `on_device` that is True. Its state then exists from the start, or starts from zeros.
    """
    return obeys(optimizer) or getattr(optimizer, "on_device", False)


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
    """Buffers of modules (BatchNorm's statistics and counters), restored when a step is skipped.

    A forward that meets NaN has already updated the running statistics, which would then stay NaN. The buffers' owners are
    found once, the buffers themselves at each use: changing a module's device or dtype replaces them.
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
        """Return a copy of the buffers."""
        groups = [[getattr(owner, name) for owner, name in group] for group in self._groups]
        return Kept(groups, [_joined(group) for group in groups])


class Kept(NamedTuple):
    """Buffers grouped by dtype and device, and their saved values: a few large tensors, so a few kernels serve all."""

    groups: list[list[Tensor]]
    saved: list[Tensor]

    @property
    def floating(self) -> list[Tensor]:
        """Return the current floating-point buffers themselves."""
        return [b for group in self.groups for b in group if b.is_floating_point()]

    @torch.no_grad()
    def restore_where(self, bad: Tensor) -> None:
        """Restore the saved values where `bad` is 1; the buffers keep their addresses."""
        if known(bad) and not bad:
            return
        for group, saved in zip(self.groups, self.saved, strict=True):
            kept = torch.where(bad.bool().to(saved.device), saved, _joined(group))
            torch._foreach_copy_(group, _pieces(kept, group))


def guarded_step(
    bad: Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    clip: float,
    before: Kept,
    skipped: Tensor,
    precision: Precision,
) -> None:
    """Clip the gradients and step along them; if `bad` is 1, restore the state before and count the skipped update.

    clip     maximum gradient norm; 0 = no clipping
    before   buffers before the forward pass
    skipped  int64, one element: the count
    """
    if clip:
        clip_grad_norm_(parameters, clip)
    step_if_finite(bad, optimizer)
    optimizer.zero_grad()
    before.restore_where(bad)
    skipped += bad.long()
    if precision.scale is not None:
        precision.scale.update(bad)


def known(bad: Tensor) -> bool:
    """Return whether the host can read it without synchronising: on a CPU, operators return computed results."""
    return bad.device.type == "cpu"


@torch.no_grad()
def _joined(group: list[Tensor]) -> Tensor:
    """Return a copy of all in one tensor. Views of each cost the host more than the copy, so they are created on demand."""
    if group[0].dim() == 0:
        return torch.stack(group)
    return torch.cat([t if t.dim() == 1 else t.reshape(-1) for t in group])


def _pieces(joined: Tensor, group: list[Tensor]) -> list[Tensor]:
    """Return views of `joined` for each tensor of the group, in its shape."""
    if group[0].dim() == 0:
        return list(joined.unbind())
    pieces = joined.split([t.numel() for t in group])
    return [piece if t.dim() == 1 else piece.view(t.shape) for piece, t in zip(pieces, group, strict=True)]

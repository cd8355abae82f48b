"""Exponential moving average of a network, its BatchNorm statistics included (EMA)."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.networks import DiscreteNetwork

WARMUP = 10.0  # TensorFlow's: the decay is at most (1 + updates) / (WARMUP + updates)


class MovingAverage:
    """Copy of a network whose parameters and floating-point buffers follow: a <- decay * a + (1 - decay) * w.

    decay   in (0, 1)
    warmup  limit the decay in the first updates, as TensorFlow does (MnasNet, MobileNetV3)
    network the averaged network, in evaluation mode
    Nothing here synchronises with the host, so an update can be captured in a CUDA graph.
    """

    def __init__(self, network: DiscreteNetwork, decay: float, warmup: bool = False) -> None:
        self.decay, self.warmup = decay, warmup
        copies: dict[int, Any] = {id(tensor): tensor.clone() for tensor in network.buffers()}  # deepcopy would also copy
        copies |= {id(p): nn.Parameter(p.detach().clone(), False) for p in network.parameters()}  # the mode of fake tensors
        copies |= {id(module.sync): None for module in network.modules() if getattr(module, "sync", None) is not None}
        self.network = deepcopy(network, copies).eval()  # without ranks, which evaluation does not need
        mine, theirs = ([*module.parameters(), *module.buffers()] for module in (self.network, network))
        pairs: list[tuple[Tensor, Tensor]] = list(zip(mine, theirs, strict=True))
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.updates = torch.zeros((), dtype=torch.float64, device=next(network.parameters()).device)

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Move the average towards the network's present values, unless `skipped`, one element, is 1."""
        made = 1.0 - skipped.to(self.updates.dtype)
        self.updates += made
        decay = torch.full_like(self.updates, self.decay)
        if self.warmup:
            decay = torch.minimum(decay, (1 + self.updates) / (WARMUP + self.updates))
        decay = (1.0 - made * (1.0 - decay)).to(self._floating[0][0].dtype)
        averaged, current = [pair[0] for pair in self._floating], [pair[1] for pair in self._floating]
        torch._foreach_mul_(averaged, decay)
        torch._foreach_add_(averaged, torch._foreach_mul(current, 1.0 - decay))
        for counter, now in self._others:  # of BatchNorm
            counter.copy_(now)

    def tensors(self) -> list[Tensor]:
        """Return everything that `update` changes."""
        return [*(pair[0] for pair in (*self._floating, *self._others)), self.updates]

    def state_dict(self) -> dict[str, object]:
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Load the state in place."""
        self.network.load_state_dict(state["network"])  # ty: ignore[invalid-argument-type]
        self.updates.copy_(state["updates"])  # ty: ignore[invalid-argument-type]

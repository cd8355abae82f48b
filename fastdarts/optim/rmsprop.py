"""RMSprop as TensorFlow computes it: MnasNet's, MobileNetV3's and EfficientNet's optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop with epsilon inside the root, square averages that begin at 1, and the learning rate inside the momentum.

        s <- alpha s + (1 - alpha) g^2;  b <- momentum b + lr g / sqrt(s + eps);  w <- w - b;  g includes weight_decay * w

    torch.optim.RMSprop has epsilon outside the root and averages that begin at 0; the published learning rates are for this
    one. lr may be a tensor of one element, which a captured step reads. All state exists from the start, so that a step whose
    update is undone leaves no new state behind.
    """

    on_device = True  # for optim.updates.capturable

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor,
        *,
        alpha: float = 0.9,
        eps: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"square_avg": torch.ones_like(p), "momentum_buffer": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # ty: ignore[incompatible-method-override]
        """Update all parameters that have a gradient; `closure` is not called."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            squares, buffers = ([self.state[p][name] for p in params] for name in ("square_avg", "momentum_buffer"))
            if group["weight_decay"]:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            moves = torch._foreach_div(grads, roots)
            torch._foreach_mul_(moves, group["lr"])
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, moves)
            torch._foreach_sub_(params, buffers)

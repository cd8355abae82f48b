"""Numeric format of a step: autocast, float16 loss scaling, TF32.

Dtypes under `--amp bf16` and `--amp fp16` (verified by tests/optim/test_precision.py):

    float32    weights, their gradients, momentum; alpha, beta, their gradients, Adam's moments
    float32    softmax of alpha and beta, BatchNorm's running statistics, and the statistics that a layer normalises with
    float32    the decoder's levels and bias and the classifier's logits as the loss takes them, the loss, its mean
    float32    normalised and masked pixels
    bf16/fp16  every activation from the stem's first convolution to the features, the decoder's products, and all gradients
               of these; weights are cast for each product
    float32    the two differences of the second order: a weight changed by R = 1e-2 / |v| would round back to its value
    int64      step numbers, counters, labels

float64 networks stay float64: autocast does not cast them.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Amp = Literal["off", "bf16", "fp16"]
DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class LossScale:
    """Dynamic float16 loss scale, which preserves small gradients: torch.amp.GradScaler's rule, computed on the device.

    `value`, float32 of one element, starts at 65536; `good`, int32, counts updates since it last changed. A skipped update
    halves it, 2000 successful updates in a row double it. Updates of the weights and of alpha both count.
    """

    START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000

    def __init__(self, device: torch.device | str) -> None:
        self.value = torch.full((), self.START, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)

    def inverse(self) -> Tensor:
        """Return 1 / value, float32 of one element."""
        return self.value.double().reciprocal().float()

    def update(self, bad: Tensor) -> None:
        """Adjust the scale after an update that was made (bad = 0) or skipped (1); float32 of one element."""
        torch._amp_update_scale_(self.value, self.good, bad, self.GROWTH, self.BACKOFF, self.INTERVAL)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value.clone(), "good": self.good.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state in place."""
        self.value.copy_(state["value"])
        self.good.copy_(state["good"])


class Precision:
    """Numeric format of a search's forward passes on `device`; see the module's docstring for what it covers.

    scale  the LossScale of fp16, else None
    one    1 on the device: float32, one element
    """

    def __init__(self, amp: Amp = "off", device: torch.device | str = "cpu") -> None:
        self.device, self.dtype = torch.device(device), DTYPES[amp]
        self.scale = LossScale(device) if amp == "fp16" else None
        self.one = torch.ones((), device=device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of forward passes. It caches no cast weights: each is used once."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype, cache_enabled=False)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the scaled loss, to call backward on."""
        return loss if self.scale is None else loss * self.scale.value

    def inverse(self) -> Tensor:
        """Return the factor that unscales gradients: float32, one element."""
        return self.one if self.scale is None else self.scale.inverse()

    def unscaled(self, grads: list[Tensor]) -> list[Tensor]:
        """Convert gradients of the scaled loss to gradients of the loss."""
        return grads if self.scale is None else list(torch._foreach_mul(grads, self.scale.inverse()))


@contextmanager
def tf32(allowed: bool) -> Generator[None]:
    """Allow or forbid TF32 (10-bit mantissas) for float32 convolutions and matrix products on a GPU, inside the context.

    torch's default allows it for convolutions.
    """
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value

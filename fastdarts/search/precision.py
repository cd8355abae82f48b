"""In which floating-point format a step computes: autocast, the scale of float16's losses, TF32.

What keeps which dtype under `--amp bf16` and `--amp fp16` (tests/search/test_precision.py holds it to this table):

    float32    weights, their gradients, momentum; alpha, beta, their gradients, Adam's moments
    float32    softmax of alpha and beta, BatchNorm's running statistics, and the statistics that a layer normalises with
    float32    the decoder's levels and bias and the classifier's logits as the loss takes them, the loss, its mean
    float32    normalised and masked pixels
    bf16/fp16  every activation from the stem's first convolution to the features, the decoder's products, and all gradients
               of these; weights are rounded on their way into a product
    float32    the two differences of the second order: a weight moved by R = 1e-2 / |v| would round back to where it was
    int64      step numbers, counters, labels

float64 networks stay float64: autocast leaves those alone.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Amp = Literal["off", "bf16", "fp16"]
DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class LossScale:
    """What a float16 loss is multiplied with, so that small gradients survive: torch.amp.GradScaler's rule, on the device.

    `value`, float32 of one element, starts at 65536; `good`, int32, counts updates since it last changed. A skipped update
    halves it, 2000 updates in a row double it. The updates of the weights and of alpha both count.
    """

    START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000

    def __init__(self, device: torch.device | str) -> None:
        self.value = torch.full((), self.START, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)

    def inverse(self) -> Tensor:
        """1 / value, float32 of one element."""
        return self.value.double().reciprocal().float()

    def update(self, bad: Tensor) -> None:
        """After an update that was made (bad = 0) or skipped (1); float32 of one element."""
        torch._amp_update_scale_(self.value, self.good, bad, self.GROWTH, self.BACKOFF, self.INTERVAL)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value.clone(), "good": self.good.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies in place."""
        self.value.copy_(state["value"])
        self.good.copy_(state["good"])


class Precision:
    """The format of a search's forward passes on `device`; the module's docstring tells what it covers.

    scale  the LossScale of fp16, else None
    one    1 on the device: float32, one element
    """

    def __init__(self, amp: Amp = "off", device: torch.device | str = "cpu") -> None:
        self.device, self.dtype = torch.device(device), DTYPES[amp]
        self.scale = LossScale(device) if amp == "fp16" else None
        self.one = torch.ones((), device=device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, forward passes take the format. No cast of a weight is kept: each is used once."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype, cache_enabled=False)

    def scaled(self, loss: Tensor) -> Tensor:
        """What to differentiate instead of the loss."""
        return loss if self.scale is None else loss * self.scale.value

    def inverse(self) -> Tensor:
        """What the gradients of a scaled loss are multiplied with: float32, one element."""
        return self.one if self.scale is None else self.scale.inverse()

    def unscaled(self, grads: list[Tensor]) -> list[Tensor]:
        """Gradients of a scaled loss -> of the loss."""
        return grads if self.scale is None else list(torch._foreach_mul(grads, self.scale.inverse()))


@contextmanager
def tf32(allowed: bool) -> Generator[None]:
    """Inside, float32 convolutions and matrix products on a GPU may or may not round their inputs to TF32's 10 bits.

    Left alone, torch lets convolutions do so.
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

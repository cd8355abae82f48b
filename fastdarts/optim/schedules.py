"""Learning-rate schedules by epoch, counted from 0."""

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

Shape = Literal["cosine", "linear", "exponential", "constant"]
Warmup = Literal["replace", "scale", "ramp"]
LINEAR_TAIL = 5  # last epochs of the linear schedule, at a fifth of its slope


def learning_rate(epoch: int, epochs: int, base: float, minimum: float, warmup: int) -> float:
    """Return the cosine from `base` towards `minimum` over `epochs`; during warm-up base * (epoch + 1) / warmup.

    `epoch` counts from 0. As in PC-DARTS' ImageNet search the warm-up replaces the first epochs of the cosine.
    """
    return Schedule("cosine", base, minimum, warmup)(epoch, epochs)


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each epoch.

    shape         cosine from base to minimum; linear to minimum over all but the last LINEAR_TAIL epochs, which continue at a
                  fifth of its slope (PC-DARTS, P-DARTS); exponential: base * decay ** (epoch // decay_epochs); constant
    base          initial learning rate
    minimum       learning rate that cosine and linear approach
    warmup        epochs of warm-up
    warmup_style  replace: base * (epoch + 1) / warmup (PC-DARTS); scale: the shape's value times that fraction (P-DARTS);
                  ramp: from warmup_rate linearly to base (timm)
    decay, decay_epochs  factor of the exponential schedule, and the epochs after which it is applied, also fractional
    """

    shape: Shape
    base: float
    minimum: float = 0.0
    warmup: int = 0
    warmup_style: Warmup = "replace"
    warmup_rate: float = 0.0
    decay: float = 0.97
    decay_epochs: float = 1.0

    def __call__(self, epoch: int, epochs: int) -> float:
        """Return the learning rate of `epoch` out of `epochs`."""
        if epoch >= self.warmup:
            return self._shaped(epoch, epochs)
        if self.warmup_style == "ramp":
            return self.warmup_rate + (self.base - self.warmup_rate) * epoch / self.warmup
        part = (epoch + 1) / self.warmup
        return part * (self._shaped(epoch, epochs) if self.warmup_style == "scale" else self.base)

    def _shaped(self, epoch: int, epochs: int) -> float:
        if self.shape == "cosine":
            return self.minimum + (self.base - self.minimum) * (1 + cos(pi * epoch / epochs)) / 2
        if self.shape == "linear":
            return self.minimum + (self.base - self.minimum) * _linear(epoch, epochs)
        if self.shape == "exponential":
            return self.base * self.decay ** (epoch // self.decay_epochs)
        return self.base


def _linear(epoch: int, epochs: int) -> float:
    tail = min(LINEAR_TAIL, epochs - 1)
    if epoch < epochs - tail:
        return (epochs - tail - epoch) / (epochs - tail)
    return (epochs - epoch) / ((epochs - tail) * LINEAR_TAIL)

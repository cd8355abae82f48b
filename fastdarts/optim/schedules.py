"""Learning-rate schedules by epoch."""

from math import cos, pi


def learning_rate(epoch: int, epochs: int, base: float, minimum: float, warmup: int) -> float:
    """Return the cosine from `base` towards `minimum` over `epochs`; during warm-up base * (epoch + 1) / warmup.

    `epoch` counts from 0. As in PC-DARTS' ImageNet search the warm-up replaces the first epochs of the cosine.
    """
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    return minimum + (base - minimum) * (1 + cos(pi * epoch / epochs)) / 2

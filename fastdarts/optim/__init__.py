"""Training of a network's weights: optimizers, numeric format, guarded updates, learning-rate schedules, an epoch's losses."""

from fastdarts.optim.epoch import Epoch
from fastdarts.optim.optimizers import OptimizerUnavailable
from fastdarts.optim.precision import Precision, tf32
from fastdarts.optim.randomness import seeded
from fastdarts.optim.schedules import learning_rate

__all__ = ["Epoch", "OptimizerUnavailable", "Precision", "learning_rate", "seeded", "tf32"]

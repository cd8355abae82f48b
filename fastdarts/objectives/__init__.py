"""WHAT is minimised: masked reconstruction (MAE-NAS), supervised classification."""

from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Objective, Weights
from fastdarts.objectives.masked import MaskedReconstruction, MultiScaleDecoder
from fastdarts.objectives.supervised import Classification

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Classification",
    "MaskedReconstruction",
    "MultiScaleDecoder",
    "Objective",
    "Weights",
]

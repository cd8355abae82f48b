"""Objectives: masked reconstruction (MAE-NAS), classification, both (MIM-DARTS), pretext tasks (UnNAS)."""

from fastdarts.objectives.base import IMAGENET_MEAN, IMAGENET_STD, Objective, Reconstructing, Weights
from fastdarts.objectives.decoders import MimDecoder, MultiScaleDecoder, SingleScaleDecoder
from fastdarts.objectives.joint import Joint
from fastdarts.objectives.masked import MaskedReconstruction
from fastdarts.objectives.masking import Masking
from fastdarts.objectives.pretext import Colourisation, Jigsaw, Pretext, Rotation
from fastdarts.objectives.supervised import Classification
from fastdarts.objectives.table import OBJECTIVES, make_objective

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "OBJECTIVES",
    "Classification",
    "Colourisation",
    "Jigsaw",
    "Joint",
    "MaskedReconstruction",
    "Masking",
    "MimDecoder",
    "MultiScaleDecoder",
    "Objective",
    "Pretext",
    "Reconstructing",
    "Rotation",
    "SingleScaleDecoder",
    "Weights",
    "make_objective",
]

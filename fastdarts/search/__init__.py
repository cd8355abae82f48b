"""Bilevel search: the step, relaxations, selection, early stopping, signs of collapse.

The module itself is callable: `fastdarts.search("mae-nas-cifar10", data=...)` calls fastdarts.facade.search.
"""

import sys

from fastdarts import CallableSearch
from fastdarts.protocols import DivergedError, Hooks, Step, StepReport
from fastdarts.search.bilevel import Bilevel
from fastdarts.search.collapse import collapse_figures, dominant_eigenvalue
from fastdarts.search.dirichlet import DirichletRelaxation
from fastdarts.search.early_stop import Stop, check_early_stop
from fastdarts.search.greedy import GreedyEdges, StableGreedyEdges
from fastdarts.search.methods import METHODS, Method, settings_of
from fastdarts.search.progressive import Progressive, Stage, stages_of
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.search.search import Search
from fastdarts.search.selection import argmax_genotype, limit_skips
from fastdarts.search.smoothing import AdversarialSmoothing, RandomSmoothing

__all__ = [
    "METHODS",
    "AdversarialSmoothing",
    "Bilevel",
    "DirichletRelaxation",
    "DivergedError",
    "GreedyEdges",
    "Hooks",
    "Method",
    "Progressive",
    "RandomSmoothing",
    "Search",
    "SoftmaxRelaxation",
    "StableGreedyEdges",
    "Stage",
    "Step",
    "StepReport",
    "Stop",
    "argmax_genotype",
    "check_early_stop",
    "collapse_figures",
    "dominant_eigenvalue",
    "limit_skips",
    "settings_of",
    "stages_of",
]


sys.modules[__name__].__class__ = CallableSearch

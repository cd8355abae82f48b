"""The methods as rows of a table: relaxation x edge treatment x outer gradient x schedule x selection.

A row sets values of settings (fields of SearchSettings and of the commands) and names the classes that it replaces. Adding a
method means adding a row. Only a new part needs new code: a relaxation, which may sample (DrNAS), perturb (SDARTS' random
smoothing), add to alpha's loss (DrNAS' distance) and decide edges after an epoch (SGAS), or a selection by the weights. A
method that evaluates the trained supernet (DARTS-PT) follows a search and is no selection in this sense.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdarts.registry import METHODS
from fastdarts.search.dirichlet import DirichletRelaxation
from fastdarts.search.greedy import GreedyEdges, StableGreedyEdges
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.search.selection import Selection, argmax_genotype
from fastdarts.search.smoothing import AdversarialSmoothing, RandomSmoothing
from fastdarts.settings import ConfigError

Values = Mapping[str, Any]  # settings by field
Dataset = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class Method:
    """A row of the table. Its mappings hold settings; an explicit flag overrides each.

    paper       the reference, printed with a run's plan
    relaxation  maps alpha to weights
    edge        whether all channels of an edge pass through its candidates, or a share of them, with edge weights
    outer       alpha's gradient: first or second order
    schedule    stages and their settings
    selection   derives the cell; `limits` are the settings that restrict it
    cifar       the published hyperparameters for CIFAR: epochs, rates, sizes
    """

    paper: str
    relaxation: type[SoftmaxRelaxation] = SoftmaxRelaxation
    edge: Values = field(default_factory=dict)
    outer: Values = field(default_factory=dict)
    schedule: Values = field(default_factory=dict)
    selection: Selection = argmax_genotype
    limits: Values = field(default_factory=dict)
    cifar: Values = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Return all settings of the row for a search on CIFAR."""
        return {**self.edge, **self.outer, **self.schedule, **self.limits, **self.cifar}


FULL = {"edge_normalization": False, "partial_channels": 1}
WEIGHTS = {"momentum": 0.9, "weight_decay": 3e-4, "grad_clip": 5.0, "warmup_epochs": 0}  # SGD on CIFAR
DARTS = WEIGHTS | {
    "epochs": 50,
    "begin": 0,
    "batch_size": 64,
    "learning_rate": 0.025,
    "learning_rate_min": 0.001,
    "arch_learning_rate": 3e-4,
    "arch_weight_decay": 1e-3,
    "arch_grad_clip": 0.0,
    "init_channels": 16,
    "layers": 8,
}
METHODS |= {
    "darts-1st": Method("Liu et al., ICLR 2019", edge=FULL, outer={"unrolled": False}, cifar=DARTS),
    "darts-2nd": Method("Liu et al., ICLR 2019", edge=FULL, outer={"unrolled": True}, cifar=DARTS),
    "pc-darts": Method(
        "Xu et al., ICLR 2020",
        edge={"edge_normalization": True},
        outer={"unrolled": False},
        cifar=DARTS
        | {
            "partial_channels": 4,
            "begin": 15,
            "batch_size": 256,
            "learning_rate": 0.1,
            "learning_rate_min": 0.0,
            "arch_learning_rate": 6e-4,
        },
    ),
    "p-darts": Method(
        "Chen et al., ICCV 2019",
        edge=FULL,
        outer={"unrolled": False},
        schedule={
            "progressive": True,
            "epochs": 75,  # 25 in each stage
            "begin": 10,  # of them
            "warmup_epochs": 0,
            "layers": 5,
            "progressive_layers": "0,6,12",
            "progressive_candidates": "5,3",
            "skip_dropout": True,
            "progressive_dropout": "0,0.4,0.7",
        },
        limits={"skip_limit": 2},
        cifar=WEIGHTS
        | {
            "batch_size": 96,
            "learning_rate": 0.025,
            "learning_rate_min": 0.0,
            "arch_learning_rate": 6e-4,
            "arch_weight_decay": 1e-3,
            "arch_grad_clip": 5.0,
            "init_channels": 16,
        },
    ),
    "sdarts-rs": Method("Chen and Hsieh, ICML 2020", RandomSmoothing, edge=FULL, outer={"unrolled": False}, cifar=DARTS),
    "sdarts-adv": Method("Chen and Hsieh, ICML 2020", AdversarialSmoothing, edge=FULL, outer={"unrolled": False}, cifar=DARTS),
    "drnas": Method("Chen et al., ICLR 2021", DirichletRelaxation, edge=FULL, outer={"unrolled": False}, cifar=DARTS),
    "drnas-progressive": Method(
        "Chen et al., ICLR 2021",
        DirichletRelaxation,
        edge={"edge_normalization": False, "partial_channels": 6, "init_channels": 48},  # on ImageNet
        outer={"unrolled": False},
        schedule={
            "progressive": True,
            "epochs": 50,  # 25 in each stage
            "begin": 10,  # of them
            "warmup_epochs": 0,
            "layers": 14,
            "progressive_layers": "0,0",
            "progressive_candidates": "4",
            "progressive_dropout": "0,0",
            "progressive_channels": "6,3",
            "progressive_carry": True,
            "progressive_rate": "whole",
        },
        cifar=WEIGHTS
        | {
            "batch_size": 64,
            "learning_rate": 0.1,
            "learning_rate_min": 0.0,
            "arch_learning_rate": 6e-4,
            "arch_weight_decay": 1e-3,
            "arch_grad_clip": 0.0,
            "init_channels": 36,
            "progressive_channels": "6,4",
            "layers": 20,
        },
    ),
    "sgas-1": Method("Li et al., CVPR 2020", GreedyEdges, edge=FULL, outer={"unrolled": False}, cifar=DARTS),
    "sgas-2": Method("Li et al., CVPR 2020", StableGreedyEdges, edge=FULL, outer={"unrolled": False}, cifar=DARTS),
}


def settings_of(method: str, dataset: Dataset = "cifar") -> dict[str, Any]:
    """Return the settings of a method.

    dataset  "imagenet": without the row's CIFAR hyperparameters, which keeps those of search_imagenet (PC-DARTS')

    Raises ConfigError for a method that is not in the table.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: known are {', '.join(METHODS)}")
    row = METHODS[method]
    return row.settings if dataset == "cifar" else {**row.edge, **row.outer, **row.schedule, **row.limits}


def in_proportion(values: Values, epochs: int) -> dict[str, int]:
    """Scale alpha's first epoch and the warm-up from the epochs in `values` to a search of `epochs` epochs."""
    return {name: epochs * values[name] // values["epochs"] for name in ("begin", "warmup_epochs")}

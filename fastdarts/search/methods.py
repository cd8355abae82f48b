"""The methods as rows of a table: relaxation x edge treatment x outer gradient x schedule x selection.

A row gives values to settings (fields of SearchSettings and of the commands) and, where it takes a class of its own, says
which. A method is added by its row; only a part that is not there yet is new code: a relaxation, which may sample (DrNAS),
perturb (SDARTS' random smoothing), add to alpha's loss (DrNAS' distance) and decide edges after an epoch (SGAS), or a selection
by the weights. One that tries out the trained supernet (DARTS-PT) is no selection in this sense: it follows a search.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdarts.registry import METHODS
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.search.selection import Selection, argmax_genotype
from fastdarts.settings import ConfigError

Values = Mapping[str, Any]  # settings by field
Dataset = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class Method:
    """A row. What is in its mappings are settings; an explicit flag wins over each.

    paper       where it is from; a run's plan says so
    relaxation  how alpha becomes weights
    edge        all channels of an edge pass through its candidates, or a share of them, with weights of the edges
    outer       alpha's gradient: of first or second order
    schedule    stages, and what goes with them
    selection   how a cell is read out; `limits` are the settings that restrict it
    cifar       the published numbers for CIFAR: epochs, rates, sizes
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
        """All that the row gives to a search on CIFAR."""
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
}


def settings_of(method: str, dataset: Dataset = "cifar") -> dict[str, Any]:
    """The settings that a method stands for.

    dataset  "imagenet": without the row's numbers for CIFAR, so that those of search_imagenet remain, PC-DARTS' own

    Raises ConfigError for a method that is not in the table.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: known are {', '.join(METHODS)}")
    row = METHODS[method]
    return row.settings if dataset == "cifar" else {**row.edge, **row.outer, **row.schedule, **row.limits}


def in_proportion(values: Values, epochs: int) -> dict[str, int]:
    """When alpha begins to move, and the warm-up, in a search of so many epochs instead of those in `values`."""
    return {name: epochs * values[name] // values["epochs"] for name in ("begin", "warmup_epochs")}

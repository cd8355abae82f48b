"""Search in stages: P-DARTS (Chen et al., ICCV 2019), with deeper supernets, and DrNAS, with wider candidates; fewer of them.

Every other method has a single stage.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from fastdarts.objectives import Objective
from fastdarts.optim.schedules import learning_rate
from fastdarts.search.selection import check_skip_limit
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights, Network
from fastdarts.supernet.candidates import fused

DECAY = 0.2  # of the dropout rate, for each epoch that updates alpha
FEWEST = 2  # candidates of an edge, so that one remains besides none
# by memory use in the definition, largest first; in the fused op pools and skips take next to none
HEAVY = ("sep_conv_5x5", "sep_conv_3x3", "dil_conv_5x5", "dil_conv_3x3", "max_pool_3x3", "avg_pool_3x3", "skip_connect")

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Stage:
    """A stage of a search, with its own weights, alpha and optimizers, or those of the stage before.

    epochs, begin  number of epochs, and of those before alpha's first update
    layers         number of cells; None: the network's
    candidates     maximum per edge; None: no limit
    dropout        initial dropout rate of skips of stride 1; 0: the network has no dropout
    partial_channels  k; None: the network's
    carry          go on with weights, alpha and optimizers of the stage before (carry.Carried)
    rate           constant learning rate of the weights in the stage of a selection, which continues with the networks and
                   alpha of the stage before; None: any other stage
    """

    epochs: int
    begin: int
    layers: int | None = None
    candidates: int | None = None
    dropout: float = 0.0
    partial_channels: int | None = None
    carry: bool = False
    rate: float | None = None

    @property
    def selects(self) -> bool:
        """Return whether this is the stage of a selection."""
        return self.rate is not None

    def __str__(self) -> str:
        parts = [
            "" if self.layers is None else f"{self.layers} cells",
            "" if self.partial_channels is None else f"k = {self.partial_channels}",
            "" if self.candidates is None else f"at most {self.candidates} candidates an edge",
            f"skips with dropout {self.dropout:g}" if self.dropout else "",
        ]
        return ", ".join(filter(None, parts))


Make = Callable[[Space, Stage], tuple[Network, Objective]]


@dataclass(frozen=True)
class Progressive:
    """The stages of a search, and the factory of their supernets and objectives.

    make  (space, stage) -> both, with fresh weights from torch's global generator, on their device and in their dtype;
          with SkipDropout if stage.dropout is not 0
    seed  the generator's at the start of the first stage; each later stage increments it
    """

    stages: tuple[Stage, ...]
    make: Make
    seed: int = 0

    def begin(self, index: int, space: Space) -> tuple[Network, Objective]:
        """Return a stage's initial supernet and objective: the same at each call."""
        torch.manual_seed(self.seed + index)
        return self.make(space, self.stages[index])


def stages_of(settings: SearchSettings, layers: int, space: Space) -> tuple[Stage, ...]:
    """Return the stages that the settings define: one unless they are `progressive`. Raises ConfigError.

    layers  cells of the first stage
    space   of the first stage
    """
    if settings.progressive:
        stages = _several(settings, layers)
    elif settings.skip_dropout:
        raise ConfigError("--skip_dropout belongs to P-DARTS' stages: also give --progressive, or omit it")
    else:
        stages = (Stage(settings.epochs, settings.begin, layers),)
    try:
        check_stages(stages, space, settings)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    return stages


def check_stages(stages: Sequence[Stage], space: Space, settings: SearchSettings) -> None:
    """Raise ValueError if these stages cannot search the space or its skips cannot be limited."""
    if len({stage.layers for stage in stages}) > 1 and space.skeleton != "darts":
        raise ValueError(f"progressive: space {space.name} has a network of fixed depth, so no stages of different depths")
    if any(stage.carry for stage in stages):
        _check_carry(stages, space)
    if len(stages) > 1 and settings.early_stop != "off":
        raise ValueError("early_stop: it follows one alpha, but each stage has a new one: use --early_stop off")
    kept = [stage.candidates for stage in stages if stage.candidates is not None]
    if kept != sorted(kept, reverse=True):
        numbers = ",".join(map(str, kept))
        raise ValueError(f"progressive_candidates {numbers}: dropped candidates never return, so the numbers must not increase")
    if settings.skip_limit:
        check_skip_limit(space, stages[-1].candidates)


def _check_carry(stages: Sequence[Stage], space: Space) -> None:
    """Raise ValueError if a stage cannot go on with the network of the one before."""
    if len({stage.layers for stage in stages}) > 1:
        raise ValueError("progressive_carry: stages of different depths (--progressive_layers) have no common weights")
    channels = [stage.partial_channels for stage in stages if stage.partial_channels is not None]
    if channels != sorted(channels, reverse=True):
        raise ValueError(f"progressive_channels {','.join(map(str, channels))}: candidates only grow, so k must not increase")
    offered = {name for kind in space.kinds for names in space.candidates(kind) for name in names}
    if own := sorted(offered - set(fused(space.skeleton)) - {"noise"}):
        raise ValueError(f"progressive_carry: how candidate {own[0]} grows is not known, because it is no fused one")


def _several(s: SearchSettings, layers: int) -> tuple[Stage, ...]:
    added = _numbers("progressive_layers", s.progressive_layers, int, at_least=0)
    kept = _numbers("progressive_candidates", s.progressive_candidates, int, at_least=FEWEST)
    rates = _numbers("progressive_dropout", s.progressive_dropout, float, at_least=0, below=1)
    count = len(added)
    if len(kept) != count - 1 or len(rates) != count:
        raise ConfigError(
            f"--progressive_layers has {count} stages: --progressive_dropout needs {count} numbers, got {len(rates)}, "
            f"--progressive_candidates {count - 1}, all stages but the first, got {len(kept)}"
        )
    if s.epochs % count:
        raise ConfigError(f"--epochs {s.epochs}: {count} stages of equal length need a multiple of {count}")
    epochs = s.epochs // count
    if s.begin >= epochs:
        raise ConfigError(
            f"--begin {s.begin}: alpha would never be updated in a stage of {epochs} epochs, but it decides what to drop"
        )
    channels = _numbers("progressive_channels", s.progressive_channels, int, at_least=1) or (None,) * count
    if len(channels) != count:
        raise ConfigError(
            f"--progressive_channels {s.progressive_channels}: --progressive_layers has {count} stages, give one k each"
        )
    rates = rates if s.skip_dropout else (0.0,) * count
    parts = zip(added, (None, *kept), rates, channels, strict=True)
    carries = [s.progressive_carry and bool(number) for number in range(count)]
    return tuple(
        Stage(epochs, s.begin, layers + more, keep, rate, k, carry)
        for (more, keep, rate, k), carry in zip(parts, carries, strict=True)
    )


def _numbers(name: str, text: str, kind: type[Number], *, at_least: float, below: float = math.inf) -> tuple[Number, ...]:
    """Parse a flag's comma-separated numbers. Raises ConfigError."""
    try:
        numbers = tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        what = "integers" if kind is int else "numbers"
        raise ConfigError(f"--{name} {text}: expected {what} separated by commas") from error
    if bad := [n for n in numbers if not at_least <= n < below]:
        most = "" if below == math.inf else f" and below {below:g}"
        raise ConfigError(f"--{name} {text}: {bad[0]} is out of range, it must be at least {at_least:g}{most}")
    return numbers


def rate_of(settings: SearchSettings, stages: Sequence[Stage], number: int, within: int) -> float:
    """Return the weights' learning rate in an epoch of a stage; `number` and `within` count from 0."""
    s, stage = settings, stages[number]
    if stage.rate is not None:
        return stage.rate
    if s.progressive_rate == "stage":
        return learning_rate(within, stage.epochs, s.learning_rate, s.learning_rate_min, s.warmup_epochs)
    first = sum(each.epochs for each in stages[:number])

    def whole(epoch: int) -> float:
        return learning_rate(epoch, s.epochs, s.learning_rate, s.learning_rate_min, s.warmup_epochs)

    if s.progressive_rate == "whole" or not number:
        return whole(first + within)
    least, start = s.learning_rate_min, whole(first)
    return least + (whole(first + within) - least) * (s.learning_rate - least) / (start - least)


def moving_epochs(stages: Sequence[Stage], epochs: int) -> int:
    """Count the epochs that update alpha among the first `epochs` of a search."""
    moving, done = 0, epochs
    for stage in stages:
        moving += max(min(done, stage.epochs) - stage.begin, 0)
        done = max(done - stage.epochs, 0)
    return moving


def skip_dropout_rate(stage: Stage, epoch: int) -> float:
    """Return the dropout rate of skips in an epoch of the stage, counted from 0.

    Before alpha's first update it falls linearly towards 0 at the stage's end. At the first update it returns to its initial
    value, and decays exponentially from there.
    """
    if epoch < stage.begin:
        return stage.dropout * (stage.epochs - epoch - 1) / stage.epochs
    return stage.dropout * math.exp(-DECAY * (epoch - stage.begin))


def shrink(space: Space, weights: dict[Kind, CellWeights], keep: int) -> Space:
    """Drop the candidates of smallest weight from each edge, none among them; `keep` remain, in their order.

    Ties drop the earlier candidate. An edge with `keep` candidates or fewer stays unchanged. Raises ValueError if only none
    would remain.
    """
    lists = {
        kind: tuple(
            _strongest(row, names, keep) for row, names in zip(weights[kind].ops.tolist(), space.candidates(kind), strict=True)
        )
        for kind in space.kinds
    }
    return replace(space, **lists)


def _strongest(row: list[float], names: tuple[str, ...], keep: int) -> tuple[str, ...]:
    """Return the `keep` candidates of largest weight; a row may be padded."""
    order = sorted(range(len(names)), key=lambda place: (row[place], place))
    dropped = set(order[: max(len(names) - keep, 0)])
    return tuple(name for place, name in enumerate(names) if place not in dropped)


def heaviest(space: Space, stage: Stage) -> list[Space]:
    """Return spaces that `space` may become in a stage; one of them approximately needs most memory for its steps.

    A skip with dropout keeps its own tensors: much next to the fused op, little next to the definition's candidates.
    """
    if stage.candidates is None:
        return [space]
    orders = [("skip_connect", *HEAVY), HEAVY] if stage.dropout else [HEAVY]
    return list(dict.fromkeys(_heaviest(space, stage.candidates, order) for order in orders))


def _heaviest(space: Space, keep: int, order: tuple[str, ...]) -> Space:
    """Return the space with the first `keep` candidates of each edge by `order`; custom candidates come first."""

    def rank(name: str) -> float:
        if name in order:
            return -float(order.index(name))
        return -math.inf if name == "none" else 1.0

    ranks = {kind: [[rank(name) for name in names] for names in space.candidates(kind)] for kind in space.kinds}
    lists = {
        kind: tuple(_strongest(row, names, keep) for row, names in zip(rows, space.candidates(kind), strict=True))
        for kind, rows in ranks.items()
    }
    return replace(space, **lists)

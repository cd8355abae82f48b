"""What converting another codebase's network gives: `python -m bench.interop`.

DARTS' CIFAR search network in its usual form (tests/zoo) unchanged, converted at level "op" and at level "cell", and the
library's own supernet of the same shape: the standard first-order bilevel step of each (backward through everything, Adam on
alpha; backward, clipping, SGD), in one process, all in turn. How long converting takes, and which
share of a converted step's processor time compares what forwards read besides their arguments.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.measure import alternate
from bench.records import RESULTS, append, milliseconds, tagged
from fastdarts.interop import convert
from fastdarts.interop.reads import Reads
from fastdarts.settings import ConfigError, Settings, setting
from fastdarts.spaces import S0
from fastdarts.supernet import CellWeights, Supernet
from tests.zoo.darts import Network
from tests.zoo.driver import CLASSES, adam, arch_step, loss_of, sgd

PROG = "python -m bench.interop"
OWN, OP, CELL, LIBRARY = "original", "op", "cell", "library"
CONVERSIONS = 5  # of which the time is the median


@dataclass(frozen=True, kw_only=True)
class InteropSettings(Settings):
    """Flags of `python -m bench.interop`."""

    batch: int = setting(64, "images of the training and of the validation batch", at_least=2)
    image_size: int = setting(32, "pixels a side", at_least=8)
    init_channels: int = setting(16, "C of the first cell", at_least=2)
    layers: int = setting(8, "cells", at_least=3)
    rounds: int = setting(5, "timed steps of each network", at_least=1)
    warm_up: int = setting(1, "steps of each before those", at_least=1)
    json: bool = setting(False, "print the record as one line of JSON")
    record: bool = setting(False, "append the record to interop.jsonl in the --results folder")
    results: str | None = setting(None, "folder of --record; without it bench/results")


class Library(nn.Module):
    """The library's supernet behind DARTS' interface."""

    def __init__(self, C: int, layers: int) -> None:
        super().__init__()
        self.supernet = Supernet(S0, C=C, layers=layers, stem="cifar")
        self.classifier = nn.Linear(self.supernet.tap_channels[-1], CLASSES)
        edges, candidates = len(S0.normal), len(S0.normal[0])
        self.alphas = {kind: (1e-3 * torch.randn(edges, candidates)).requires_grad_() for kind in ("normal", "reduce")}

    def arch_parameters(self) -> list[Tensor]:
        return list(self.alphas.values())

    def forward(self, x: Tensor) -> Tensor:
        weights = {kind: CellWeights(alpha.softmax(-1)) for kind, alpha in self.alphas.items()}
        return self.classifier(self.supernet(x, weights)[-1].mean((2, 3)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 2 for wrong input."""
    args = InteropSettings.given(argv, PROG, __doc__)
    try:
        settings = InteropSettings.make(args)
        if settings.image_size % 8:
            raise ConfigError(f"--image_size {settings.image_size}: two reductions need a multiple of 8")
    except ConfigError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    record = tagged(measure(settings))
    print(json.dumps(record) if settings.json else text(record))
    if settings.record:
        append(Path(settings.results or RESULTS) / "interop.jsonl", record)
    return 0


def measure(settings: InteropSettings) -> dict[str, Any]:
    """Measure a step of each network and converting, in ms; how many times faster than the original each is."""
    load = os.getloadavg()[0]
    torch.manual_seed(0)
    own = Network(settings.init_channels, settings.layers, steps=4).train()
    networks: dict[str, nn.Module] = {OWN: own, OP: deepcopy(own), CELL: deepcopy(own)}
    networks[LIBRARY] = Library(settings.init_channels, settings.layers).train()
    convert(networks[OP], level="op")
    convert(networks[CELL])
    seconds = median(_converting(own) for _ in range(CONVERSIONS))
    runs = {name: _stepping(network, settings) for name, network in networks.items()}
    times = alternate(runs, "cpu", rounds=settings.rounds, warm_up=settings.warm_up)
    steps = {name: milliseconds(values) for name, values in times.items()}
    return {
        "batch": settings.batch,
        "image_size": settings.image_size,
        "init_channels": settings.init_channels,
        "layers": settings.layers,
        "device": "cpu",
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        **{f"{name}_ms": steps[name] for name in networks},
        **{f"{name}_ratio": round(steps[OWN]["median"] / steps[name]["median"], 2) for name in (OP, CELL, LIBRARY)},
        "convert_ms": round(1e3 * seconds, 1),
        "checks_percent": round(_checks(runs[CELL], settings.rounds), 2),
        "rounds": settings.rounds,
        "load": round(load, 2),
    }


def _converting(own: nn.Module) -> float:
    network = deepcopy(own)
    began = perf_counter()
    convert(network)
    return perf_counter() - began


def _checks(step: Callable[[], Tensor], rounds: int) -> float:
    """Percent of a step's processor time that the comparisons take, the median of `rounds` steps; with their own clock."""
    own, spent, shares = Reads.same, 0.0, []

    def timed(reads: Reads, module: nn.Module) -> bool:
        nonlocal spent
        began = thread_time()
        same = own(reads, module)
        spent += thread_time() - began
        return same

    with patch.object(Reads, "same", timed):
        for _ in range(rounds):
            spent, began = 0.0, process_time()
            step()
            shares.append(100 * spent / (process_time() - began))
    return median(shares)


def _stepping(network: Any, settings: InteropSettings) -> Callable[[], Tensor]:
    """Make the network's bilevel step, on images of its own."""
    size = settings.batch, 3, settings.image_size, settings.image_size
    train, valid = ((torch.randn(size), torch.randint(0, CLASSES, (settings.batch,))) for _ in range(2))
    outer, inner = adam(network.arch_parameters()), sgd(list(network.parameters()))

    def step() -> Tensor:
        arch_step(network, outer, *valid)
        inner.zero_grad()
        loss = loss_of(network, *train)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5)
        inner.step()
        return loss.detach()

    return step


def text(record: dict[str, Any]) -> str:
    """Format a record."""
    lines = [
        "DARTS' CIFAR network, C = {init_channels}, {layers} cells, batch {batch}, {image_size} px, {threads} threads".format(
            **record
        )
    ]
    for name in (OWN, OP, CELL, LIBRARY):
        ratio = record.get(f"{name}_ratio", 1.0)
        lines.append(f"{name:10s}{record[f'{name}_ms']['median']:10.1f} ms a step  {ratio:6.2f} times the original's speed")
    return "\n".join(
        [*lines, f"converting takes {record['convert_ms']} ms", f"checks take {record['checks_percent']} % of a step"]
    )


if __name__ == "__main__":
    sys.exit(main())

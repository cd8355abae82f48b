"""What a step of each method, objective and space costs compared with plain DARTS' step: `python -m bench.methods --record`.

Plain is DARTS' first order, supervised, on the same space at the same depth; both are set up as search_cifar does it, with
the published settings but for the sizes, and take their steps in turn in one process. The rows:

methods     second order; PC-DARTS; each stage of P-DARTS, from the second on with dropout behind its skips and without. An edge
            keeps as many candidates as the stage has, those that take most memory and the skip, and plain has the same
objectives  DARTS' own steps with each of them. `supervised` is plain against itself: the clock's resolution
spaces      masked (MAE-NAS) and joint (MIM-DARTS) steps on S1 to S4 and NAS-Bench-201, each against its own plain step

A record says which backend served each call of an op in a step, and which candidates run in eager mode next to the fused ones.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import torch

from bench.measure import alternate, quantiles
from bench.method_rows import Row, chosen
from bench.records import RESULTS, append, milliseconds, tagged
from bench.workload import Steps, Workload, resident_batch
from fastdarts import engine, search_cifar
from fastdarts.ops import backend
from fastdarts.ops.backend import Backend
from fastdarts.optim import tf32
from fastdarts.runs.build_search import build
from fastdarts.runs.resolved import Resolved
from fastdarts.search import METHODS, Stage
from fastdarts.search.progressive import heaviest, skip_dropout_rate
from fastdarts.search.setup import bilevel_of
from fastdarts.settings import AnySearch, ConfigError, Settings, setting
from fastdarts.spaces import Space
from fastdarts.steps import CapturedSteps
from fastdarts.supernet.eager_candidates import MixedEdgesWithEager

PROG = "python -m bench.methods"
CIFAR = {"data": "cifar-10-batches-py"}  # settings for it, not for the generated sample; it is not read
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class MethodsSettings(Settings):
    """Flags of `python -m bench.methods`."""

    only: str | None = setting(None, "groups (methods, objectives, spaces) and rows to measure, with commas between")
    batch: int = setting(16, "images of the training and of the validation batch", at_least=1)
    image_size: int = setting(32, "pixels a side", at_least=1)
    init_channels: int = setting(16, "channels of the first stage's nodes", at_least=2)
    layers: int | None = setting(
        None, "cells (of P-DARTS' first stage); without it each method's own: 8, P-DARTS 5", at_least=3
    )
    stage_cells: int = setting(5, "cells of each stage of NAS-Bench-201's network", at_least=1)
    rounds: int = setting(7, "timed steps of each side", at_least=1)
    warm_up: int = setting(1, "steps of each side before those, besides the one that is looked into", at_least=0)
    threads: int = setting(0, "of torch on the CPU; 0 = as many as it takes by itself", at_least=0)
    backend: str = setting("auto", "of the fused ops, on both sides")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto = cuda where there is one")
    json: bool = setting(False, "print each record as one line of JSON")
    record: bool = setting(False, "append the records to methods.jsonl in the --results folder")
    results: str | None = setting(None, "folder of --record; without it bench/results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 when memory or the numbers gave out, 2 for wrong input."""
    args, threads = MethodsSettings.given(argv, PROG, __doc__), torch.get_num_threads()
    try:
        settings = MethodsSettings.make(args)
        asked = [(row, *_both(row, settings)) for row in chosen(settings.only)]  # wrong input is found before the first step
        torch.set_num_threads(settings.threads or threads)
        for row, own, plain in asked:
            record = tagged(measure(row, own, plain, settings))
            print(json.dumps(record) if settings.json else text(record), flush=True)
            if settings.record:
                append(Path(settings.results or RESULTS) / "methods.jsonl", record)
    except (ConfigError, backend.BackendUnavailable) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except (torch.OutOfMemoryError, ArithmeticError) as error:
        print(f"{PROG}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    return 0


class Side(NamedTuple):
    """A step that can be set up."""

    resolved: Resolved
    space: Space
    stage: Stage

    @property
    def settings(self) -> AnySearch:
        """Of the search that it is a step of."""
        return self.resolved.settings


def _both(row: Row, settings: MethodsSettings) -> tuple[Side, Side]:
    """Make the row's step and plain DARTS'. Raises ConfigError for sizes that do not fit."""
    sizes: dict[str, Any] = {
        "batch_size": settings.batch,
        "image_size": settings.image_size,
        "init_channels": settings.init_channels,
    }
    sizes |= {"stage_cells": settings.stage_cells, "backend": settings.backend, "device": settings.device}
    sizes |= {} if settings.layers is None else {"layers": settings.layers}
    own, plain = (search_cifar.resolve(CIFAR | dict(values) | sizes) for values in (row.own, row.plain))
    stage = own.stages[row.stage]
    space = heaviest(own.space, replace(stage, dropout=1.0))[0]  # with the skips, whether they have dropout or not
    sides = Side(own, space, stage), Side(plain, space, replace(stage, dropout=0.0))
    with torch.device("meta"):
        for side in sides:
            build(side.resolved, CLASSES, side.stage, side.space)
    return sides


def measure(row: Row, own: Side, plain: Side, settings: MethodsSettings) -> dict[str, Any]:
    """One comparison, as plain values.

    ratio, of the medians: how many plain steps the row's step takes; ratio_by_round its quantiles over the rounds.
    backends, plain_backends: number of calls in one step by op and backend. beside: number of eager candidates in all cells, by
    module.
    """
    load, device = os.getloadavg()[0], torch.device(own.settings.device)
    with tf32(own.settings.tf32), engine.algorithms(own.settings.deterministic, own.settings.device):
        runs = {"own": _steps(own), "plain": _steps(plain)}
        calls = {name: _calls(run) for name, run in runs.items()}
        times = alternate(runs, device.type, rounds=settings.rounds, warm_up=settings.warm_up)
    supernet = runs["own"].bilevel.updates.supernet
    ms, plain_ms = (milliseconds(times[name]) for name in ("own", "plain"))
    by_round = [a / b for a, b in zip(times["own"], times["plain"], strict=True)]
    return {
        "row": row.name,
        "group": row.group,
        "method": own.settings.method,
        "objective": own.settings.objective,
        "space": own.settings.space,
        "batch": settings.batch,
        "image_size": settings.image_size,
        "init_channels": own.settings.init_channels,
        "cells": supernet.num_cells,
        "candidates": max(len(names) for kind in own.space.kinds for names in own.space.candidates(kind)),
        "partial_channels": own.settings.partial_channels,
        "dropout": own.stage.dropout,
        "dtype": "float32",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "ratio": round(ms["median"] / plain_ms["median"], 3),
        "ratio_by_round": {name: round(value, 3) for name, value in quantiles(by_round).items()},
        "own_ms": ms,
        "plain_ms": plain_ms,
        "backends": calls["own"],
        "plain_backends": calls["plain"],
        "beside": dict(Counter(_eager(runs["own"]))),
        "plain_beside": dict(Counter(_eager(runs["plain"]))),
        "own_step": runs["own"].replay,
        "plain_step": runs["plain"].replay,
        "rounds": settings.rounds,
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
    }


def _steps(side: Side) -> Steps:
    """Make a step as search_cifar sets one up, on two batches that stay on the device."""
    s = side.settings
    torch.manual_seed(s.seed)
    supernet, objective = build(side.resolved, CLASSES, side.stage, side.space)
    supernet.to(s.device).to(memory_format=torch.channels_last)
    objective.to(s.device)
    if side.stage.dropout:
        supernet.drop_skips(skip_dropout_rate(side.stage, side.stage.begin))
    bilevel = bilevel_of(supernet, objective, s, relaxation=METHODS[s.method].relaxation, seed=s.seed)
    batches = Workload("cifar", s.batch_size, s.image_size, s.partial_channels)
    train, val = (resident_batch(batches, CLASSES, seed).to(s.device) for seed in (1, 2))
    return Steps(CapturedSteps(bilevel, s.cuda_graph), train, val)


def _calls(run: Steps) -> dict[str, dict[str, int]]:
    """By op, how many calls of one step each backend served; takes that step, uncaptured."""
    with noted() as calls:
        run.bilevel.updates(run.number, run.train, run.val)
    return {op: dict(by) for op, by in sorted(calls.items())}


@contextmanager
def noted() -> Generator[dict[str, Counter[str]]]:
    """Inside, the calls of each op are counted by the backend that serves them."""
    calls: dict[str, Counter[str]] = {}

    def noting(op: str, one: Backend) -> Backend:
        def run(*args: Any) -> Any:
            calls.setdefault(op, Counter())[one.name] += 1
            return one.run(*args)

        return replace(one, run=run)

    wrapped = {op: {name: noting(op, one) for name, one in of_op.items()} for op, of_op in backend._ops.items()}
    with patch.dict(backend._ops, wrapped):
        yield calls


def _eager(run: Steps) -> Iterator[str]:
    """Return the kind of each candidate that runs in eager mode."""
    for module in run.bilevel.updates.supernet.modules():
        if isinstance(module, MixedEdgesWithEager):
            yield from (type(module.get_submodule(path)).__name__ for path in module.separate)


def text(record: dict[str, Any]) -> str:
    """Format a record in one line."""
    what = "{row:32}{ratio:8.3f} times plain's {plain_ms[median]:8.1f} ms ({ratio_by_round[q20]} to {ratio_by_round[q80]})"
    served = [f"{op} {name} {n}" for op, by in record["backends"].items() for name, n in by.items()]
    eager = [f"{n} {name} eager" for name, n in record["beside"].items()]
    return f"{what.format(**record)}  {', '.join([*served, *eager])}"


if __name__ == "__main__":
    sys.exit(main())

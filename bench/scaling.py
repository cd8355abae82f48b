"""How much faster several ranks take a bilevel step of one global batch: `python -m bench.scaling --ranks 2`.

On a CPU, one thread a rank, by gloo on one machine: rank 0 takes steps of the whole batch alone while the others wait, then
all take steps of their shares, in turn, in the same processes. Efficiency is the time of one rank divided by the ranks' number
and their time: 1 is perfect. It says what averaging and unequal waiting cost, not what several GPUs would do.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from bench.records import RESULTS, append, milliseconds, tagged
from bench.workload import OURS, SUPERNETS, Steps, Workload, WorkloadError
from fastdarts.engine import RankInfo, World
from fastdarts.settings import ConfigError, Settings, setting

PROG = "python -m bench.scaling"
Times = dict[str, list[float]]  # seconds of each timed step


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """Flags of `python -m bench.scaling`."""

    supernet: Literal["cifar", "pc-cifar", "pc-imagenet", "mae-imagenet"] = setting("mae-imagenet", "supernet to time")
    batch: int = setting(16, "images of the training and of the validation batch, over all ranks", at_least=1)
    ranks: int = setting(2, "processes of one thread each", at_least=2)
    image_size: int | None = setting(None, "pixels a side; without it 32 (CIFAR) or 224 (ImageNet)", at_least=1)
    rounds: int = setting(9, "timed steps, alone and together", at_least=1)
    warm_up: int = setting(2, "steps before those", at_least=0)
    json: bool = setting(False, "print the record as one line of JSON")
    record: bool = setting(False, "append the record to scaling.jsonl in the --results folder")
    results: str | None = setting(None, "folder of --record; without it bench/results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 2 for wrong input."""
    args = ScalingSettings.given(argv, PROG, __doc__)
    try:
        settings = ScalingSettings.make(args)
        if settings.batch % settings.ranks:
            raise ConfigError(
                f"--batch {settings.batch} cannot be divided equally among {settings.ranks} ranks: choose a multiple"
            )
        workload = _workload(settings)
        workload.check(OURS)
    except (ConfigError, WorkloadError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    record = tagged(measure(workload, settings))
    print(json.dumps(record) if settings.json else text(record))
    if settings.record:
        append(Path(settings.results or RESULTS) / "scaling.jsonl", record)
    return 0


def measure(workload: Workload, settings: ScalingSettings) -> dict[str, Any]:
    """Time a step, in ms, alone and together; average_ms is rank 0's share of it in averages, waiting included."""
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (workload, settings, folder), nprocs=settings.ranks)
        times: Times = torch.load(Path(folder) / "times", weights_only=True)
    alone, together, averaging = (milliseconds(times[name]) for name in ("alone", "together", "averaging"))
    return {
        "supernet": workload.supernet,
        "batch": settings.batch,
        "image_size": workload.image_size,
        "partial_channels": workload.partial_channels,
        "dtype": workload.dtype,
        "device": "cpu",
        "ranks": settings.ranks,
        "threads": 1,
        "cores": len(os.sched_getaffinity(0)),
        "efficiency": round(alone["median"] / (settings.ranks * together["median"]), 3),
        "alone_ms": alone,
        "together_ms": together,
        "average_ms": averaging,
        "rounds": settings.rounds,
        "load": round(load, 2),
    }


def text(record: dict[str, Any]) -> str:
    """Format a record."""
    what = "{supernet}, batch {batch}, {image_size} px, k = {partial_channels}, {ranks} ranks of one thread on {cores} cores"
    one, many, averages = (record[name]["median"] for name in ("alone_ms", "together_ms", "average_ms"))
    return (
        f"{what.format(**record)}\none rank {one:.1f} ms, together {many:.1f} ms, of which {averages:.1f} ms average and wait: "
        f"efficiency {record['efficiency']}"
    )


def _workload(settings: ScalingSettings) -> Workload:
    preset = SUPERNETS[settings.supernet]
    size = settings.image_size or preset.image_size
    return Workload(settings.supernet, settings.batch, size, preset.partial_channels)


class _Timed:
    """Averages over a world, and counts the seconds since they were last asked for."""

    def __init__(self, world: World) -> None:
        self.world, self.seconds = world, 0.0

    def __call__(self, flat: Tensor) -> None:
        started = perf_counter()
        self.world.average(flat)
        self.seconds += perf_counter() - started


def _rank(rank: int, workload: Workload, settings: ScalingSettings, folder: str) -> None:
    """One process: steps of its share together with the others, and on rank 0 steps of the whole batch between."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), settings.ranks)
    limit = timedelta(minutes=30)  # the others wait while rank 0 works alone
    dist.init_process_group("gloo", store=store, rank=rank, world_size=settings.ranks, timeout=limit)
    world = World(RankInfo(rank, settings.ranks, rank, settings.ranks), backend="gloo")
    shared: Any = replace(workload, batch=workload.batch // settings.ranks).build(OURS)
    average = _Timed(world)
    shared.bilevel.updates.reduce = average
    whole: Any = workload.build(OURS) if world.is_main else None
    times: Times = {"alone": [], "together": [], "averaging": []}
    for number in range(-settings.warm_up, settings.rounds):
        seconds = {"alone": _seconds(whole) if whole is not None else 0.0}
        world.wait()
        average.seconds = 0.0
        seconds["together"] = _seconds(shared)
        seconds["averaging"] = average.seconds
        if number >= 0:
            for name, value in seconds.items():
                times[name].append(value)
    if world.is_main:
        torch.save(times, Path(folder) / "times")
    world.wait()
    dist.destroy_process_group()


def _seconds(run: Steps) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())

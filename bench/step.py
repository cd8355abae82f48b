"""Times a step of the library against op-by-op PyTorch: `python -m bench.step --supernet cifar`, or `--network darts-cifar`.

A step of a supernet is alpha's gradient and update, then the weights' gradient, clipping and update, from uint8 batches
that are on the device already. `--supernet cell` is one CIFAR cell's mixed edges, forward and backward. A step of a
discrete network is that of its training, or, with `--evaluate`, a forward pass in eval mode. Time is taken in one
process, both sides in turn; peak memory in a process of its own for each side. Ends with status 2 on wrong input.
"""

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest.mock import patch

import torch

from bench.measure import alone, alternate, timed
from bench.network import FOLDED, NETWORKS, NetworkWorkload
from bench.records import RESULTS, append, milliseconds, tagged
from bench.workload import AGAINST, CELL, CELL_SIZE, OURS, SUPERNETS, Workload, WorkloadError
from fastdarts.settings import ConfigError, Settings, setting

PROG = "python -m bench.step"


@dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """Flags of `python -m bench.step`."""

    supernet: Literal["cifar", "pc-cifar", "pc-imagenet", "mae-imagenet", "cell"] = setting("cifar", "supernet to time")
    network: str = setting("", "discrete network to time instead of a supernet: " + ", ".join(NETWORKS))
    evaluate: bool = setting(False, "time a forward pass in eval mode (--network)")
    layers: int | None = setting(None, "cells (--network); without it as published", at_least=1)
    init_channels: int | None = setting(None, "channels (--network); without it as published", at_least=1)
    batch: int = setting(64, "images of the training and of the validation batch", at_least=1)
    against: Literal["eager", "channels-last", "compile", "graph", "graph-channels-last", "folded"] = setting(
        "eager",
        "the definition in NCHW, in channels_last, each cell compiled, captured in a CUDA graph, or (folded: --evaluate) in "
        "channels_last with BatchNorms folded into convolutions",
    )
    backend: Literal["auto", "definition"] = setting("auto", "of the library's ops on our side")
    image_size: int | None = setting(None, "pixels a side; without it 32 (CIFAR) or 224 (ImageNet)", at_least=1)
    partial_channels: int | None = setting(None, "k; without it 1, or 4 (pc-cifar), or 2 (ImageNet)", at_least=1)
    dtype: Literal["float32", "float64", "bfloat16"] = setting("float32", "bfloat16 = autocast, with float32 weights")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto = cuda where there is one")
    rounds: int = setting(9, "timed calls of each side", at_least=1)
    warm_up: int = setting(2, "calls of each side before those", at_least=1)
    memory: bool = setting(True, "measure peak memory too, in two more processes")
    json: bool = setting(False, "print the record as one line of JSON")
    record: bool = setting(False, "append the record to step.jsonl in the --results folder")
    results: str | None = setting(None, "folder of --record; without it bench/results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 when memory or the numbers gave out, 2 for wrong input."""
    args = StepSettings.given(argv, PROG, __doc__)
    try:
        settings = StepSettings.make(args)
        workload = chosen(settings)
        workload.check(settings.against)
        with TemporaryDirectory() as cache, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
            record = tagged(measure(workload, settings))  # what it compiles was never compiled before
    except (ConfigError, WorkloadError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except (torch.OutOfMemoryError, ArithmeticError, BrokenProcessPool) as error:
        print(f"{PROG}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    print(json.dumps(record) if settings.json else text(record))
    if settings.record:
        append(Path(settings.results or RESULTS) / "step.jsonl", record)
    return 0


def chosen(settings: StepSettings) -> Workload | NetworkWorkload:
    """Return the workload of the settings, with the network's own sizes by default. Raises ConfigError."""
    s = settings
    if s.network and s.network not in NETWORKS:
        raise ConfigError(f"--network {s.network}: there are {', '.join(NETWORKS)}")
    if s.network:
        side = s.image_size or NETWORKS[s.network].image_size
        sizes = s.evaluate, s.layers, s.init_channels
        return NetworkWorkload(s.network, s.batch, side, *sizes, s.dtype, device(s.device), s.backend)
    if s.evaluate or s.layers or s.init_channels or s.against == FOLDED:
        raise ConfigError("--evaluate, --layers, --init_channels and --against folded are for --network")
    preset = SUPERNETS.get(settings.supernet)
    size, k = (preset.image_size, preset.partial_channels) if preset else (CELL_SIZE, 1)
    return Workload(
        settings.supernet,
        settings.batch,
        settings.image_size or size,
        settings.partial_channels or k,
        settings.dtype,
        device(settings.device),
        settings.backend,
    )


def device(name: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Return "cpu" or "cuda". Raises ConfigError without a GPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA GPU on this machine")
    return name


def measure(workload: Workload | NetworkWorkload, settings: StepSettings) -> dict[str, Any]:
    """Both sides' times and peaks.

    Times in ms; peaks in 10**6 bytes; images_per_s of our side; compile_s, the seconds of a compiled side's first call;
    ours_step, whether our steps were replayed as CUDA graphs or why not (None for a cell);
    load, the machine's load average before this began (well above the threads others were at work, and the times mean little).
    """
    sides, compiled = (OURS, settings.against), settings.against != FOLDED and AGAINST[settings.against].compiled
    load = os.getloadavg()[0]
    if compiled and workload.device == "cpu" and isinstance(workload, Workload) and workload.supernet != CELL:
        print(f"{PROG}: compiling every cell of a supernet takes many minutes on a CPU", file=sys.stderr)
    alones = [alone(workload, side) for side in sides] if settings.memory else []
    runs = {side: workload.build(side) for side in sides}
    first = alones[1].first_s if alones else timed(runs[settings.against], workload.device)[0]
    times = alternate(runs, workload.device, rounds=settings.rounds, warm_up=settings.warm_up)
    ours, theirs = (milliseconds(times[side]) for side in sides)
    return workload.facts() | {
        "against": settings.against,
        "ours_step": getattr(runs[OURS], "replay", None),
        "ratio": round(theirs["median"] / ours["median"], 3),
        "ours_ms": ours,
        "theirs_ms": theirs,
        "ours_peak_mb": alones[0].peak_mb if alones else None,
        "theirs_peak_mb": alones[1].peak_mb if alones else None,
        "images_per_s": round(1e3 * workload.images / ours["median"], 1),
        "compile_s": round(first, 1) if compiled else None,
        "rounds": settings.rounds,
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
    }


def text(record: dict[str, Any]) -> str:
    """Format a record: what was timed, a line for each side, the ratio."""
    if "network" in record:
        what = "{work} of {network}, C = {init_channels}, {layers} cells, batch {batch}, {image_size} px"
    else:
        what = "{supernet}, batch {batch}, {image_size} px, k = {partial_channels}"
    what += ", {dtype}, {device}, {threads} threads"
    rows = [("ours", record["ours_ms"], record["ours_peak_mb"])]
    rows += [(record["against"], record["theirs_ms"], record["theirs_peak_mb"])]
    lines = [what.format(**record), f"{'':20}{'ms':>10}{'20 %':>10}{'80 %':>10}{'peak MB':>10}"]
    for name, ms, peak in rows:
        columns = (ms["median"], ms["q20"], ms["q80"], float("nan") if peak is None else peak)
        lines.append(f"{name:20}" + "".join(f"{value:10.1f}" for value in columns))
    compiled = "" if record["compile_s"] is None else f", first call with compilation {record['compile_s']} s"
    return "\n".join([*lines, f"ratio {record['ratio']}, {record['images_per_s']} images/s{compiled}"])


if __name__ == "__main__":
    sys.exit(main())

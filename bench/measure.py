"""Time and memory: alternating rounds in one process, peak memory in a process of its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch

from bench.workload import Run

T = TypeVar("T")
MEGABYTE = 1e6
STATUS = Path("/proc/self/status")


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantile, linearly interpolated; in the unit of `values`, of which there is at least one."""
    q20, median, q80 = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    return {"median": median, "q20": q20, "q80": q80}


def timed(run: Callable[[], T], device: str) -> tuple[float, T]:
    """Wall time of one call, in seconds, from an idle device to an idle device; and what it returned."""
    synchronise = torch.cuda.synchronize if device == "cuda" else _nothing
    synchronise()
    started = perf_counter()
    result = run()
    synchronise()
    return perf_counter() - started, result


def alternate(runs: Mapping[str, Run], device: str, *, rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Time `rounds` calls of each run, in seconds, one after the other in each round, after `warm_up` calls of each.

    Every second round goes the other way about, so that neither always follows the other. Raises ArithmeticError when
    a loss is not finite: that is no work of a search.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-warm_up, rounds):
        for name in sorted(runs, reverse=number % 2 == 1):
            elapsed, loss = timed(runs[name], device)
            if not math.isfinite(loss.item()):
                raise ArithmeticError(f"{name}: the loss is not finite, so its time would say nothing")
            if number >= 0:
                times[name].append(elapsed)
    return times


class Alone(NamedTuple):
    """What a process that runs nothing but one side tells."""

    first_s: float  # seconds of the first call: where something is compiled, it is compiled there
    peak_mb: float | None  # 10**6 bytes, weights and batches included


def alone(workload: Any, side: str, calls: int = 2) -> Alone:
    """Run a side in a fresh process; the second call finds the optimizers' state of the first.

    The peak is the allocator's on a GPU. On a CPU it is how far the resident set grew beyond that of a process with
    torch loaded, program files left out; None where there is no /proc.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_alone, workload, side, calls).result()


def _alone(workload: Any, side: str, calls: int) -> Alone:
    on_gpu = workload.device == "cuda"
    known = on_gpu or STATUS.is_file()
    before = _resident("VmRSS") if known and not on_gpu else 0
    run = workload.build(side)
    first, *_ = [timed(run, workload.device)[0] for _ in range(calls)]
    if not known:
        return Alone(first, None)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM") - before
    return Alone(first, round(peak / MEGABYTE, 1))


def _resident(field: str) -> int:
    """Bytes that this process has (VmRSS) or had at most (VmHWM) in memory, without the pages of program files.

    Not getrusage: its peak starts at the parent's.
    """
    lines = (line.split() for line in STATUS.read_text().splitlines())
    kibibytes = {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
    return 1024 * (kibibytes[field] - kibibytes["RssFile"])


def _nothing() -> None:
    """Wait for a GPU; a CPU has finished when the call returns."""

"""Time and memory: alternating rounds in one process, peak memory in a process of its own."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import torch

from bench.workload import Run, Workload, build

MEGABYTE = 1e6


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantile, linearly interpolated; in the unit of `values`, of which there is at least one."""
    q20, median, q80 = (
        torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    )
    return {"median": median, "q20": q20, "q80": q80}


def seconds(run: Run, device: str) -> float:
    """Wall time of one call, in seconds, until the device is idle again. Raises ArithmeticError if it ends in no number."""
    synchronise = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    synchronise()
    started = perf_counter()
    loss = run()
    synchronise()
    elapsed = perf_counter() - started
    if not math.isfinite(loss.item()):
        raise ArithmeticError("the loss is not finite: what was timed is no work of a search")
    return elapsed


def alternate(runs: Mapping[str, Run], device: str, *, rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Times of `rounds` calls of each run, in seconds, one after the other in each round, after `warm_up` calls of each.

    Every second round goes the other way about, so that neither always follows the other.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-warm_up, rounds):
        for name in sorted(runs, reverse=number % 2 == 1):
            elapsed = seconds(runs[name], device)
            if number >= 0:
                times[name].append(elapsed)
    return times


def peak_megabytes(workload: Workload, side: str, calls: int = 3) -> float | None:
    """What a side needs at most, in 10**6 bytes, weights and batches included: measured in a fresh process.

    On a GPU the allocator's peak; on a CPU how far the resident set grew beyond that of a process with torch loaded
    (None where there is no /proc).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak, workload, side, calls).result()


def _peak(workload: Workload, side: str, calls: int) -> float | None:
    status = Path("/proc/self/status")
    on_gpu = torch.device(workload.device).type == "cuda"
    if not (on_gpu or status.is_file()):
        return None
    before = 0 if on_gpu else _kibibytes(status, "VmRSS")
    run = build(workload, side)
    for _ in range(calls):
        run()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * (_kibibytes(status, "VmHWM") - before)
    return round(peak / MEGABYTE, 1)


def _kibibytes(status: Path, field: str) -> int:
    """A field of /proc/PID/status. Unlike getrusage's, these numbers are the process' own: none is its parent's."""
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def _nothing() -> None:
    """A CPU has finished when the call returns."""

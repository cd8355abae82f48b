"""Holds the memory planner to what steps really take: `python -m bench.memory --record`.

Each case is a bilevel step of a published search network: its predicted peak (search_bytes) against the measured
one (bench.measure.alone), in 10**6 bytes. Ends with status 1 where one is off by more than ALLOWED, 2 on wrong input.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.measure import MEGABYTE, alone
from bench.records import RESULTS, append, tagged
from bench.step import device
from bench.workload import OURS, SUPERNETS, Workload, make_objective, make_supernet
from fastdarts.runs.memory_search import search_bytes
from fastdarts.search import SoftmaxRelaxation
from fastdarts.settings import ConfigError, Settings, setting
from fastdarts.steps import meta_batch

PROG = "python -m bench.memory"
ALLOWED = 0.15  # of what was measured


@dataclass(frozen=True, kw_only=True)
class MemorySettings(Settings):
    """Flags of `python -m bench.memory`."""

    cases: Literal["all", "fused", "definition"] = setting("all", "which backends' cases")
    largest: float = setting(10.0, "GiB: cases that are predicted to take more are left out", above=0)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto = cuda where there is one")
    record: bool = setting(False, "append each case to memory.jsonl in the --results folder")
    results: str | None = setting(None, "folder of --record; without it bench/results")


def cases(which: str, device: Literal["cpu", "cuda"]) -> Iterator[Workload]:
    """Yield k = 1, 2, 4, batches of 16 and 64, both stems, both orders; once 4 images, and the definition in bfloat16."""
    for backend in {"all": ("auto", "definition"), "fused": ("auto",)}.get(which, ("definition",)):
        yield Workload("pc-cifar", 4, 32, 4, device=device, backend=backend)
        for supernet, size in (("cifar", 32), ("pc-cifar", 32), ("pc-imagenet", 224), ("mae-imagenet", 224)):
            for k in {"cifar": (1,), "pc-cifar": (2, 4)}.get(supernet, (1, 2, 4)):
                for batch in (16, 64):
                    yield Workload(supernet, batch, size, k, device=device, backend=backend)
        for supernet, size, k in (("cifar", 32, 1), ("pc-cifar", 32, 4), ("pc-imagenet", 224, 2)):
            yield Workload(supernet, 16, size, k, device=device, backend=backend, unrolled=True)
    if which != "fused":
        yield Workload("pc-cifar", 16, 32, 4, "bfloat16", device, "definition")


def predicted(workload: Workload) -> int:
    """Return the planner's bytes of a workload's step, its two batches included."""
    with torch.device("meta"):
        supernet = make_supernet(workload, workload.backend)
        objective = make_objective(workload, supernet, workload.backend)
    edges = SUPERNETS[workload.supernet].edge_weights
    relaxation = SoftmaxRelaxation(workload.space, edge_normalization=edges, device="meta")
    return search_bytes(
        supernet,
        objective,
        relaxation,
        meta_batch(workload.batch, workload.image_size),
        workload.device,
        amp="bf16" if workload.dtype == "bfloat16" else "off",
        unrolled=workload.unrolled,
    )


def compare(workload: Workload, calls: int = 3) -> dict[str, Any]:
    """Return a case's record: predicted_mb, measured_mb of `calls` steps (None where there is no /proc), and their ratio."""
    plan = predicted(workload) / MEGABYTE
    peak = alone(workload, OURS, calls).peak_mb
    return workload.facts() | {
        "order": 2 if workload.unrolled else 1,
        "predicted_mb": round(plan, 1),
        "measured_mb": peak,
        "ratio": None if peak is None else round(plan / peak, 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = MemorySettings.given(argv, PROG, __doc__)
    try:
        settings = MemorySettings.make(args)
        where = device(settings.device)
    except ConfigError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    off = 0
    for workload in cases(settings.cases, where):
        if predicted(workload) > settings.largest * 2**30:
            continue
        record = compare(workload)
        off += record["ratio"] is not None and abs(record["ratio"] - 1) > ALLOWED
        words = "{supernet} batch {batch} k {partial_channels} {dtype} {backend} order {order}".format(**record)
        print(f"{words:55}{record['predicted_mb']:10}{record['measured_mb']:10}{record['ratio']:8}", flush=True)
        if settings.record:
            append(Path(settings.results or RESULTS) / "memory.jsonl", tagged(record))
    if off:
        print(f"{PROG}: {off} cases are off by more than {ALLOWED:.0%}", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())

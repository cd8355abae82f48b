"""How near the Triton kernels come to what binds them. `python -m bench.roofline`, on a machine with a GPU.

For each kernel at shapes that fill the chip: bytes, operations, time, and the share of the measured copy bandwidth and of
the matrix rate of its dtype (bench.ceilings); the larger of the two says how much of what binds it is reached.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import ceilings
from bench.gpu_cases import DTYPES, Case, cases, kernel_times
from bench.records import RESULTS, append, tagged
from fastdarts.ops import backend


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 2 where there is no GPU or no Triton."""
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__, allow_abbrev=False)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], help="of the tensors in memory")
    parser.add_argument("--rounds", type=int, default=10, help="calls that are timed")
    parser.add_argument("--json", action="store_true", help="print the records, one line each")
    parser.add_argument("--record", action="store_true", help="append the records to roofline.jsonl")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of --record")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    why_not = backend.triton(torch.float32)(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32)
    if why_not:
        print(f"bench.roofline: error: {why_not}", file=sys.stderr)
        return 2
    limits = ceilings.measure("cuda")
    for dtype in args.dtypes:
        for case in cases(DTYPES[dtype]):
            kind = str(case.dtype).removeprefix("torch.") if case.dtype else dtype
            for row in rows(case, kind, kernel_times(case.run, args.rounds), limits):
                record = tagged(row)
                print(json.dumps(record) if args.json else line(row), flush=True)  # a time limit may end it
                if args.record:
                    append(args.results / "roofline.jsonl", record)
    return 0


def rows(case: Case, dtype: str, times: dict[str, tuple[float, int]], limits: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each kernel with a cost, then one for the time of all the others together.

    times   by kernel: seconds and launches in one call
    limits  what bench.ceilings measured
    """
    plain = dtype in ("float32", "uint8")  # integers are multiplied outside the matrix units too
    rate = limits["float32_matmul_tflop_per_s" if plain else "bfloat16_matmul_tflop_per_s"]
    found = []
    for kernel, cost in case.costs.items():
        if kernel not in times:
            raise RuntimeError(f"{case.op}: no launch of {kernel} was seen among {', '.join(sorted(times)) or 'none'}")
        seconds, launches = times[kernel]
        gb_per_s, tflop_per_s = cost.bytes / seconds / 1e9, cost.operations / seconds / 1e12
        shares = {"copy_share": gb_per_s / limits["copy_gb_per_s"], "rate_share": tflop_per_s / rate}
        binds = "memory" if shares["copy_share"] >= shares["rate_share"] else "rate"
        found.append(
            {"roofline": kernel, "op": case.op, "shape": case.shape, "dtype": dtype, "us": round(1e6 * seconds, 1)}
            | {"launches": launches, "gb": round(cost.bytes / 1e9, 4), "gflop": round(cost.operations / 1e9, 3)}
            | {"gb_per_s": round(gb_per_s, 1), "tflop_per_s": round(tflop_per_s, 3)}
            | {name: round(share, 3) for name, share in shares.items()}
            | {"share": round(max(shares.values()), 3), "binds": binds}
        )
    others = {kernel: spent for kernel, spent in times.items() if kernel not in case.costs}
    spent, launches = sum(s for s, _ in others.values()), sum(n for _, n in others.values())
    rest = {"roofline": "all others", "op": case.op, "shape": case.shape, "dtype": dtype, "us": round(1e6 * spent, 1)}
    return [*found, rest | {"launches": launches}]


def line(row: dict[str, Any]) -> str:
    """Format a row."""
    head = f"{row['op']:19} {row['roofline']:17} {row['dtype']:9} {row['shape']:32} {row['us']:9.1f} us"
    if "share" not in row:
        return f"{head}  in {row['launches']} launches"
    rates = f"{row['gb_per_s']:7.0f} GB/s {row['copy_share']:4.0%}  {row['tflop_per_s']:7.1f} TFLOP/s {row['rate_share']:4.0%}"
    return f"{head}  {rates}  {row['binds']} binds"


if __name__ == "__main__":
    sys.exit(main())

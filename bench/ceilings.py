"""What the machine can do at most, measured: copy bandwidth and matrix products. `python -m bench.ceilings`.

A kernel's floor is its bytes over the first and its operations over the second.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.measure import timed
from bench.records import RESULTS, append, tagged


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; appends to ceilings.jsonl with --record."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceilings", description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", action="store_true", help="append the record to ceilings.jsonl")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of --record")
    args = parser.parse_args(argv)
    record = tagged(measure(args.device))
    print(json.dumps(record))
    if args.record:
        append(args.results / "ceilings.jsonl", record)
    return 0


def measure(device: str) -> dict[str, Any]:
    """Measure copies in GB/s (bytes read and written), products in TFLOP/s (a multiplication and an addition are two)."""
    on_gpu = device == "cuda"
    size, side = (2**32, 8192) if on_gpu else (2**27, 2048)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    figures: dict[str, Any] = {"ceilings": torch.cuda.get_device_name() if on_gpu else "cpu"}
    figures["copy_gb_per_s"] = round(2 * size / 1e9 / _seconds(lambda: target.copy_(source), device), 1)
    for dtype in (torch.bfloat16, torch.float32) if on_gpu else (torch.float32,):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        rate = 2 * side**3 / 1e12 / _seconds(lambda a=a, b=b: a @ b, device)
        figures[f"{str(dtype).removeprefix('torch.')}_matmul_tflop_per_s"] = round(rate, 3)
    return figures


def _seconds(run: Callable[[], Any], device: str) -> float:
    """Median time of ten calls, after three."""
    return median([timed(run, device)[0] for _ in range(13)][3:])


if __name__ == "__main__":
    sys.exit(main())

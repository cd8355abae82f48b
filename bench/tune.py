"""Tune the launch settings of the Triton kernels on this GPU: `python -m bench.tune`.

Starting from the current settings, changes one block size or warp count of a kernel at a time, keeps a change that is faster
by more than the noise, prefers a CUDA kernel if it is 1.2 times as fast, and rewrites the rows of this GPU's architecture in
kernels/launch.json. The order of sums follows the blocks: results of searches before and after differ in the last bits. Run the
GPU tests afterwards.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bench.gpu_cases import DTYPES, Case, cases, kernel_times
from fastdarts import native
from fastdarts.ops import backend

CUDA_GAIN = 1.2  # how many times faster than Triton's a CUDA kernel must be to take its place
FASTER = 0.97  # of the time so far: less is noise
WARPS = (1, 2, 4, 8, 16)
BLOCKS = (8, 4096)  # the smallest and the largest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 2 where there is no GPU or no Triton."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__, allow_abbrev=False)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the tensors in memory")
    parser.add_argument("--rounds", type=int, default=10, help="calls that are timed")
    parser.add_argument("--dry_run", action="store_true", help="print what would be written, and write nothing")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if why_not := backend.triton(torch.float32)(device, torch.float32):
        print(f"bench.tune: error: {why_not}", file=sys.stderr)
        return 2
    from fastdarts.kernels import launch

    target = launch.target_of(torch.device("cuda", torch.cuda.current_device()))
    for name in args.dtypes:
        for case in cases(DTYPES[name]):
            dtype = case.dtype or DTYPES[name]
            for settings in tuned(case, dtype, target, args.rounds):
                print(f"{target} {str(dtype).removeprefix('torch.')} {settings}", flush=True)
    text = written(launch.table())
    if args.dry_run:
        print(text, end="")
    else:
        launch.TABLE.write_text(text, encoding="utf-8")
    return 0


def tuned(case: Case, dtype: torch.dtype, target: str, rounds: int) -> Iterator[str]:
    """Tune each kernel of the case that has a cost; one line about each."""
    from triton.runtime.errors import OutOfResources

    from fastdarts.kernels import launch
    from fastdarts.kernels.compile import all_specimens

    rows = {s.name: s.settings for s in all_specimens() if s.settings.startswith(f"{case.op}.")}
    for kernel in case.costs:
        settings = rows[kernel]
        best = {k: v for k, v in launch.settings(settings, dtype, target).items() if k not in launch.COMMON}
        launch.replace(settings, dtype, target, best | {"backend": "triton"})
        first = fastest = kernel_times(case.run, rounds)[kernel][0]
        for key in best:
            for value in neighbours(key, best[key]):
                tried = best | {key: value}
                launch.replace(settings, dtype, target, tried)
                try:
                    seconds = kernel_times(case.run, rounds)[kernel][0]
                except OutOfResources:
                    continue
                if seconds < FASTER * fastest:
                    best, fastest = tried, seconds
        launch.replace(settings, dtype, target, best | {"backend": "triton"})
        by_cuda = ""
        if native.without_cuda() is None:
            launch.replace(settings, dtype, target, best | {"backend": "cuda"})
            seconds = kernel_times(case.run, rounds)[kernel][0]
            if seconds * CUDA_GAIN > fastest:
                launch.replace(settings, dtype, target, best | {"backend": "triton"})
            by_cuda = f"; by CUDA {1e6 * seconds:.1f} us"
        yield f"{settings} {case.shape}: {1e6 * first:.1f} -> {1e6 * fastest:.1f} us, {json.dumps(best)}{by_cuda}"


def neighbours(key: str, value: int) -> list[int]:
    """Return what to try instead of `value`: half and twice; num_stages one less and one more."""
    if key == "num_stages":
        return [n for n in (value - 1, value + 1) if 1 <= n <= 5]
    smallest, largest = (WARPS[0], WARPS[-1]) if key == "num_warps" else BLOCKS
    return [n for n in (value // 2, value * 2) if smallest <= n <= largest]


def written(table: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """launch.json of this table: kernels in order, one line a row."""
    kernels = []
    for kernel in sorted(table):
        targets = []
        for target, rows in table[kernel].items():
            lines = ",\n".join(f'      "{dtype}": {json.dumps(row)}' for dtype, row in rows.items())
            targets.append(f'    "{target}": {{\n{lines}\n    }}')
        kernels.append(f'  "{kernel}": {{\n' + ",\n".join(targets) + "\n  }")
    return "{\n" + ",\n".join(kernels) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())

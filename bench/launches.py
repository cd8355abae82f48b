"""What the mixed cells of a supernet launch on a GPU in one first-order bilevel step, and the bytes it transfers. Needs no GPU.

`python -m bench.launches --supernet cifar --batch 64`, or `--network darts-cifar` for the cells of a discrete network in
one step of its training: for each kernel of ops.mixed_cell its launches, grids, bytes and operations, and the time that
the bytes alone take at a copy bandwidth: a floor, not a measurement.

Notation: N images, S pixels a side, C channels of a node, k the divisor of partial channels.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from bench.network import NETWORKS, NetworkWorkload
from bench.workload import SUPERNETS, Workload, WorkloadError, make_supernet
from fastdarts.kernels.graph import Graph
from fastdarts.kernels.mixed_cell_launches import Call, Launch, Needs, beyond
from fastdarts.kernels.mixed_cell_plan import launch_plan
from fastdarts.supernet.network import STEM_STRIDE

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
STACKED = [name for name, preset in NETWORKS.items() if preset.kind != "nasbench201"]
H200 = 4300.0  # GB/s that copies reach on an H200
WEIGHTS = Needs(inputs=True, ops=False, weights=True)
STEPS = {"alpha": Needs(inputs=True, ops=True, weights=False), "weights": WEIGHTS}


class Pass(NamedTuple):
    """One launch of a step: number of the cell, "forward" or "backward" of alpha's or the weights' step."""

    cell: int
    part: str
    launch: Launch


def calls(workload: Workload) -> list[Call]:
    """Make the mixed cells of the workload's supernet, one after the other. Raises WorkloadError for sizes that do not fit."""
    workload.check("ours")
    with torch.device("meta"):
        supernet = make_supernet(workload, "definition")
    cells: Any = supernet.cells
    graphs = [(cell._ops.graph, cell.preprocess1.op[1].out_channels) for cell in cells]
    stem, weighted = STEM_STRIDE[supernet.stem_kind], SUPERNETS[workload.supernet].edge_weights
    return _sized(graphs, workload, stem, partial_channels=workload.partial_channels, weighted=weighted)


def network_calls(workload: NetworkWorkload) -> list[Call]:
    """Make the cells of a discrete network in training with drop path, those too wide for the kernels included.

    Raises WorkloadError for sizes that do not fit.
    """
    workload.check("ours")
    with torch.device("meta"):
        network = workload.network_of()
    graphs = [(cell.fused.graph, cell.preprocess1.parts()[0][0].out_channels) for cell in network.cells]
    return _sized(graphs, workload, STEM_STRIDE[network.shape.kind], weighted=2, affine=True)


def _sized(graphs: Sequence[tuple[Graph, int]], workload: Any, stem: int, **facts: Any) -> list[Call]:
    """Return the calls of cells, one after the other, by their graphs and channels."""
    side, found = workload.image_size // stem, []
    for graph, C in graphs:
        found.append(Call(graph, (workload.batch, C, side, side), **facts))
        side //= graph.stride
    return found


def step(cells: Sequence[Call], steps: Mapping[str, Needs] = STEPS) -> Iterator[Pass]:
    """Return the launches of one step, in order: of all `steps`, by name, with the gradients that each needs."""
    for name, needs in steps.items():
        for i, call in enumerate(cells):
            yield from (Pass(i, f"forward, {name}", launch) for launch in launch_plan(call))
        for i, call in reversed(list(enumerate(cells))):
            yield from (Pass(i, f"backward, {name}", launch) for launch in launch_plan(call, needs))


def table(passes: Sequence[Pass], itemsize: int, gb_per_s: float) -> list[dict[str, Any]]:
    """Return a row for each kernel and one for all: launches, least and largest grid, GB, GFLOP, microseconds of the bytes."""
    rows = []
    for name in [*dict.fromkeys(p.launch.kernel for p in passes), "all"]:
        mine = [p.launch for p in passes if name in ("all", p.launch.kernel)]
        gb = sum(launch.bytes(itemsize) for launch in mine) / 1e9
        grids = [launch.programs for launch in mine if launch.programs > 0]
        rows.append(
            {"kernel": name, "launches": len(mine), "programs": [min(grids), max(grids)] if grids else None}
            | {"gb": round(gb, 4), "gflop": round(sum(launch.operations for launch in mine) / 1e9, 3)}
            | {"us": round(1e6 * gb / gb_per_s, 1)}
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """Format a row."""
    grid = "" if row["programs"] is None else "{} .. {}".format(*row["programs"])
    work = f"{row['gb']:9.3f} GB{row['gflop']:10.1f} GFLOP{row['us']:9.0f} us"
    return f"{row['kernel']:16}{row['launches']:6} launches{grid:>16} programs{work}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 2 for sizes that do not fit together."""
    parser = argparse.ArgumentParser(prog="python -m bench.launches", description=__doc__, allow_abbrev=False)
    parser.add_argument("--supernet", choices=SUPERNETS, default="cifar")
    parser.add_argument("--network", choices=STACKED, help="discrete network, in one training step, instead of a supernet")
    parser.add_argument("--batch", type=int, default=64, help="images of the training and of the validation batch")
    parser.add_argument("--partial_channels", type=int, help="k; without it the supernet's own")
    parser.add_argument("--dtype", choices=SIZES, default="bfloat16", help="of the tensors in memory")
    parser.add_argument("--gb_per_s", type=float, default=H200, help="bandwidth (bench.ceilings); 4300 is an H200's")
    parser.add_argument("--json", action="store_true", help="print the launches themselves, one line each")
    args = parser.parse_args(argv)
    if args.batch < 1 or not args.gb_per_s > 0:
        parser.error("--batch and --gb_per_s must be above 0")
    if args.network and args.partial_channels:
        parser.error("--partial_channels is for --supernet: a discrete network processes all channels")
    try:
        if args.network:
            title = f"{args.network}, batch {args.batch}, {args.dtype}: cells of one training step"
            side = NETWORKS[args.network].image_size
            cells = network_calls(NetworkWorkload(args.network, args.batch, side))
            fused = [call for call in cells if beyond(call.graph.inputs, call.shape[1]) is None]
            passes = list(step(fused, {"weights": WEIGHTS}))
            title += f", {len(fused)} of {len(cells)} (the others are too wide for the kernels)" if fused != cells else ""
        else:
            preset = SUPERNETS[args.supernet]
            k = args.partial_channels or preset.partial_channels
            title = f"{args.supernet}, batch {args.batch}, k = {k}, {args.dtype}: mixed cells of one bilevel step"
            passes = list(step(calls(Workload(args.supernet, args.batch, preset.image_size, k))))
    except WorkloadError as error:
        print(f"bench.launches: error: {error}", file=sys.stderr)
        return 2
    size = SIZES[args.dtype]
    if args.json:
        for cell, part, one in passes:
            facts = {"kernel": one.kernel, "programs": one.programs, "bytes": one.bytes(size), "operations": one.operations}
            print(json.dumps({"cell": cell, "part": part} | facts))
        return 0
    print(title)
    for row in table(passes, size, args.gb_per_s):
        print(line(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())

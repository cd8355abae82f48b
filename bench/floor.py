"""What binds the fused cell on a CPU: `python -m bench.floor --supernet cifar --batch 16`, or `--network darts-cifar`.

For each stage of ops.mixed_cell (csrc/cpu/mixed_cell_kernels.cpp) and for ops.relu_conv_bn the time it takes in a step,
the operations and bytes that its plan needs, and how close that comes to what this machine can do at most: multiply-adds
in registers on all threads, and copies of memory (a stage may exceed the latter where its tensors stay in the caches).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import ceilings
from bench.network import NETWORKS, NetworkWorkload
from bench.records import RESULTS, append, tagged
from bench.workload import CELL, CELL_SIZE, OURS, SUPERNETS, Run, Workload, WorkloadError
from fastdarts import native
from fastdarts.kernels.arguments import MixedCell, MixedCellBackward, ReLUConvBN, ReLUConvBNBackward
from fastdarts.kernels.graph import PLAIN_POOLS, Candidate, Graph, convolutions

PROG = "python -m bench.floor"
FACTS = ("supernet", "network", "init_channels", "layers", "batch", "image_size", "partial_channels")  # of a record
POOLS = (Candidate.MAX_POOL_3, Candidate.AVG_POOL_3, *PLAIN_POOLS)


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiply-add is two) and bytes read and written."""

    operations: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.operations + other.operations, self.bytes + other.bytes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; appends to floor.jsonl with --record. 2 for wrong input or without the native module."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument("--supernet", choices=(CELL, *SUPERNETS), default=CELL)
    parser.add_argument("--network", choices=tuple(NETWORKS), help="discrete network instead of a supernet")
    parser.add_argument("--layers", type=int, help="cells (--network); without it as published")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--partial_channels", type=int, help="k; without it the supernet's own")
    parser.add_argument("--image_size", type=int, help="pixels a side; without it the supernet's own")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps")
    parser.add_argument("--record", action="store_true", help="append the record to floor.jsonl")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of --record")
    args = parser.parse_args(argv)
    if args.network and args.partial_channels:
        parser.error("--partial_channels is for --supernet: a discrete network processes all channels")
    if args.layers is not None and (args.layers < 1 or not args.network):
        parser.error(f"--layers {args.layers}: at least 1, with --network")
    if why := native.reason():
        print(f"{PROG}: error: {why}", file=sys.stderr)
        return 2
    workload = chosen(args)
    try:
        workload.check(OURS)
        record = tagged(measure(workload, args.rounds))
    except WorkloadError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(record) if args.record else text(record))
    if args.record:
        append(args.results / "floor.jsonl", record)
    return 0


def chosen(args: argparse.Namespace) -> Workload | NetworkWorkload:
    """Return the workload of the flags, with its own sizes by default."""
    if args.network:
        side = args.image_size or NETWORKS[args.network].image_size
        return NetworkWorkload(args.network, args.batch, side, layers=args.layers)
    preset = SUPERNETS.get(args.supernet)
    size, k = (preset.image_size, preset.partial_channels) if preset else (CELL_SIZE, 1)
    return Workload(args.supernet, args.batch, args.image_size or size, args.partial_channels or k)


def measure(workload: Workload | NetworkWorkload, rounds: int) -> dict[str, Any]:
    """Per stage: ms of a step, GFLOP and GB of its plan, and the rates they make, with the machine's own rates."""
    run = workload.build(OURS)
    module: Any = native.module()
    for _ in range(2):
        run()
    costs = counted(run)
    module.reset_stages()
    began = perf_counter()
    for _ in range(rounds):
        run()
    step = (perf_counter() - began) / rounds
    stages = {}
    for name, total in module.stage_seconds().items():
        if not total:
            continue
        seconds, cost = total / rounds, costs.get(name, Cost())
        stages[name] = {
            "ms": round(1e3 * seconds, 3),
            "gflop": round(cost.operations / 1e9, 4),
            "gb": round(cost.bytes / 1e9, 4),
            "gflop_per_s": round(cost.operations / 1e9 / seconds, 1),
            "gb_per_s": round(cost.bytes / 1e9 / seconds, 1),
        }
    facts = workload.facts()
    return {name: facts[name] for name in FACTS if name in facts} | {
        "isa": module.isa(),
        "threads": torch.get_num_threads(),
        "step_ms": round(1e3 * step, 2),
        "fma_gflop_per_s": round(module.fma_peak() / 1e9, 1),
        "copy_gb_per_s": ceilings.measure("cpu")["copy_gb_per_s"],
        "stages": stages,
    }


def counted(run: Run) -> dict[str, Cost]:
    """Return the cost of each stage in one call of `run`."""
    with _Calls() as calls:
        run()
    return calls.costs


class _Calls(TorchDispatchMode):
    """Adds up the cost of every call of the ops and of their backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.ops.fastdarts.mixed_cell.default:
            a = MixedCell(*args)
            self._add(forward_cost(Graph.decode(a.graph), a.inputs[0], a.partial_channels))
        elif func is torch.ops.fastdarts.mixed_cell_backward.default:
            b = MixedCellBackward(*args)
            self._add(backward_cost(Graph.decode(b.graph), b.inputs[0], b.partial_channels, b.need_inputs, b.need_weights))
        elif func is torch.ops.fastdarts.relu_conv_bn.default:
            self._add({"relu_conv_bn": layers_cost(ReLUConvBN(*args))})
        elif func is torch.ops.fastdarts.relu_conv_bn_backward.default:
            self._add({"relu_conv_bn_backward": layers_cost(ReLUConvBNBackward(*args))})
        return func(*args, **(kwargs or {}))

    def _add(self, costs: dict[str, Cost]) -> None:
        for name, cost in costs.items():
            self.costs[name] = self.costs.get(name, Cost()) + cost


class Sizes(NamedTuple):
    """Of one call: numbers in an output tensor of the processed channels (y), in a state as an edge reads it, in a node."""

    Cq: int
    y: int
    node: int
    item: int  # bytes of a number

    @staticmethod
    def of(graph: Graph, x: torch.Tensor, k: int) -> "Sizes":
        node = x.numel() // graph.stride**2
        return Sizes(x.shape[1] // k, node // k, node, x.element_size())


def _taps(candidate: Candidate, stride: int, Cq: int) -> list[tuple[int, int]]:
    """(depthwise, pointwise) multiply-adds for each output number, of each unit of a candidate."""
    shapes = convolutions(candidate, stride, Cq)
    if candidate == Candidate.SKIP or (shapes and shapes[0][1] > 1):  # dense
        return [(0, sum(prod(shape) for shape in shapes) // Cq)] if shapes else []
    return [(prod(depthwise) // Cq, Cq) for depthwise, _ in zip(shapes[::2], shapes[1::2], strict=True)]


def forward_cost(graph: Graph, x: torch.Tensor, k: int) -> dict[str, Cost]:
    """Of the forward's stages, for inputs like x."""
    s = Sizes.of(graph, x, k)
    first = second = nodes = Cost()
    for edge in graph.edges:
        read = s.y * edge.stride**2
        first += Cost(0, read * s.item)
        for candidate in edge.candidates:
            units = _taps(candidate, edge.stride, s.Cq)
            for number, (depthwise, pointwise) in enumerate(units):
                cost = Cost(2 * s.y * (depthwise + pointwise), s.y * s.item)  # writes y
                if number:
                    second += cost + Cost(0, s.y * s.item)  # and reads the first half's
                else:
                    first += cost
            if candidate != Candidate.NONE:
                nodes += Cost(2 * s.y, s.y * s.item if units else read * s.item)
        nodes += Cost(2 * (s.node - s.y), (s.node - s.y) * edge.stride**2 * s.item)  # what passes by
    nodes += Cost(0, 2 * graph.nodes * s.node * s.item)  # states and output
    return {"first_halves": first, "second_halves": second, "nodes": nodes}


def backward_cost(graph: Graph, x: torch.Tensor, k: int, need_inputs: bool, need_weights: bool) -> dict[str, Cost]:
    """Of the backward's stages, for inputs like x."""
    s = Sizes.of(graph, x, k)
    sums = first = second = finish = Cost()
    for edge in graph.edges:
        read, source = s.y * edge.stride**2, need_inputs or edge.source >= graph.inputs
        sums += Cost(s.y, s.y * s.item)
        works = source or need_weights
        if works:
            first += Cost(0, (read + s.y + 2 * read * source) * s.item)  # x, g, and the update of the source's gradient
        for candidate in edge.candidates:
            units = _taps(candidate, edge.stride, s.Cq)
            if candidate != Candidate.NONE:
                sums += Cost(2 * s.y, s.y * s.item if units else read * s.item)
            for number, (depthwise, pointwise) in enumerate(units if works else ()):
                wanted = source or number > 0  # whether the input's gradient is
                learned = depthwise + pointwise + depthwise  # recomputed, and both weights' gradients
                through = pointwise * (bool(depthwise) or wanted) + depthwise * wanted
                cost = Cost(2 * s.y * (through + learned * need_weights), s.y * s.item)
                if number:
                    second += cost + Cost(0, 3 * s.y * s.item)  # g and the first half's y, and writes its gradient
                else:
                    first += cost
            if candidate in POOLS or (candidate == Candidate.SKIP and not units):
                finish += Cost(2 * s.y * source, (s.y + 2 * read) * s.item * source)
        finish += Cost(2 * (s.node - s.y) * source, 3 * (s.node - s.y) * s.item * source)
    return {"sums": sums, "second_gradients": second, "first_gradients": first, "finish": finish}


def layers_cost(a: ReLUConvBN | ReLUConvBNBackward) -> Cost:
    """Of preprocess layers: each output is written, then normalised in place; backward, g and xhat are read twice."""
    weights, cost = iter(a.weights), Cost()
    for i, (x, count) in enumerate(zip(a.xs, a.counts, strict=True)):
        numbers = sum(next(weights).numel() for _ in range(count))
        pixels, D = x.numel() // x.shape[1] // count**2, numbers // x.shape[1]
        products, y = 2 * pixels * numbers, pixels * D * x.element_size()
        read = x.numel() // count * x.element_size()
        if isinstance(a, ReLUConvBN):
            cost += Cost(products, read + (4 if a.scales else 3) * y)
        else:
            cost += Cost(products * (a.need_xs[i] + a.need_weights), read + 4 * y + x.numel() * x.element_size() * a.need_xs[i])
    return cost


def text(record: dict[str, Any]) -> str:
    """Format a record as a table."""
    sizes = ", ".join(f"{name} {record[name]}" for name in FACTS if name in record)
    what = sizes + ", {isa}, {threads} threads: {step_ms} ms a step"
    most = "at most {fma_gflop_per_s} GFLOP/s in registers, {copy_gb_per_s} GB/s of copies"
    lines = [
        what.format(**record),
        most.format(**record),
        f"{'stage':22}{'ms':>9}{'GFLOP/s':>10}{'share':>8}{'GB/s':>8}{'share':>8}",
    ]
    for name, stage in record["stages"].items():
        shares = stage["gflop_per_s"] / record["fma_gflop_per_s"], stage["gb_per_s"] / record["copy_gb_per_s"]
        rates = f"{stage['gflop_per_s']:10.1f}{shares[0]:8.0%}{stage['gb_per_s']:8.1f}{shares[1]:8.0%}"
        lines.append(f"{name:22}{stage['ms']:9.2f}{rates}")
    inside = sum(stage["ms"] for stage in record["stages"].values())
    return "\n".join([*lines, f"{'all of them':22}{inside:9.2f}", f"{'rest of the step':22}{record['step_ms'] - inside:9.2f}"])


if __name__ == "__main__":
    sys.exit(main())

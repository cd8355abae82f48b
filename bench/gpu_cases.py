"""Calls of the Triton kernels at shapes that fill a GPU, and what each kernel has to move and compute in them.

`python -m bench.gpu_cases` runs each once, small, at every dtype: what bench/gpu.sh runs under compute-sanitizer.

Notation: N images of S x S pixels, C input and D output channels, m output pixels, b bytes of a number.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from fastdarts.kernels.mixed_cell_launches import Call, Needs
from fastdarts.kernels.mixed_cell_plan import launch_plan
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD
from fastdarts.ops.masked_loss import masked_loss
from fastdarts.ops.mixed_cell import mixed_cell
from fastdarts.ops.patch_mask import patch_mask
from fastdarts.ops.random_resized_crop import random_resized_crop
from fastdarts.ops.relu_conv_bn import relu_conv_bn
from fastdarts.spaces import S0
from fastdarts.supernet.candidates import graph_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PIXELS: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


class Cost(NamedTuple):
    """What a kernel must do: bytes that it reads or writes, each tensor once; floating-point operations."""

    bytes: int
    operations: int


@dataclass(frozen=True)
class Case:
    """One call of an op, forward and backward.

    costs  of its kernels, by their functions' names; not of the small ones that merge partial sums, bound by latency alone
    dtype  of its tensors, if it is not the one asked for
    """

    op: str
    shape: str
    run: Callable[[], Any]
    costs: dict[str, Cost]
    dtype: torch.dtype | None = None


def cases(dtype: torch.dtype, *, small: bool = False) -> Iterator[Case]:
    """Of every op, one after the other, so that one case's tensors can go before the next one's come."""
    N, S = (2, 64) if small else (2048, 224)
    if dtype == torch.float32:  # pixels are bytes: once is enough
        yield boxes(N, S)
    yield patches(N, S, 8, dtype)
    yield loss(N, S, 8, dtype)
    for C, D, taps in ((192, 48, 1), (192, 96, 2)):
        yield layer(2 if small else 1024, C, D, 28, taps, dtype)
    for stride, k in ((1, 1), (2, 1), (1, 2)):
        yield cell(2 if small else 1024, 8 if small else 32, 16, stride, k, dtype)


def boxes(N: int, S: int) -> Case:
    """ops.random_resized_crop of images a third larger than the result, boxes of a third to the whole of their sides."""
    H, W = S * 8 // 7, S * 3 // 2
    draw = torch.Generator().manual_seed(0)
    h, w = (torch.randint(side // 3, side + 1, (N,), generator=draw) for side in (H, W))
    places = torch.stack([(H - h) // 2, (W - w) // 2, h, w], 1)
    pixels = torch.randint(256, (N * 3 * H * W,), dtype=torch.uint8, device="cuda")
    start, size = 3 * H * W * torch.arange(N, device="cuda"), torch.tensor([[H, W]], device="cuda").repeat(N, 1)
    at, numbers = places.cuda(), 3 * N * S * S
    taps_h, taps_w = (2 * side.clamp(min=S) / S for side in (h, w))  # of an output; rows are formed once, at best
    operations = 6 * S * int((h * taps_w + S * taps_h).sum())

    def run() -> Any:
        return random_resized_crop(pixels, start, size, at, image_size=S, backend="triton")

    cost = Cost(3 * int((h * w).sum()) + numbers, operations)
    return Case("random_resized_crop", f"{N} x {H} x {W} to {S} px", run, {"resize": cost}, torch.uint8)


def _resident(N: int, S: int, patch: int) -> tuple[torch.Tensor, ...]:
    """Images, which of them are mirrored, which patches are masked."""
    images = torch.randint(256, (N, S, S, 3), dtype=torch.uint8, device="cuda")
    half = torch.rand(N, S // patch, S // patch, device="cuda") < 0.5
    return images, torch.rand(N, device="cuda") < 0.5, half


def patches(N: int, S: int, patch: int, dtype: torch.dtype) -> Case:
    """ops.patch_mask with half of the patches masked."""
    images, flip, _ = _resident(N, S, patch)
    index, step = torch.arange(N, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    fill, P, numbers = torch.zeros(3, dtype=dtype, device="cuda"), (S // patch) ** 2, 3 * N * S * S
    settings: dict[str, Any] = {"seed": 0, "stream": 0, "patch_size": patch, "num_masked": P // 2, "dtype": dtype} | PIXELS

    def run() -> Any:
        return patch_mask(images, index, step, flip, fill, **settings, backend="triton")

    return Case("patch_mask", f"{N} x {S} px", run, {"write_pixels": Cost(numbers * (1 + dtype.itemsize) + N * P, 2 * numbers)})


def loss(N: int, S: int, patch: int, dtype: torch.dtype) -> Case:
    """ops.masked_loss (L1) of three levels, and its gradients."""
    images, flip, mask = _resident(N, S, patch)
    sides = S // 8, S // 16, S // 32
    levels = [torch.randn(N, 3, s, s, dtype=dtype, device="cuda").to(memory_format=torch.channels_last) for s in sides]
    inputs = [t.requires_grad_() for t in (torch.zeros(3, dtype=dtype, device="cuda"), *levels)]
    numbers, cells = 3 * N * S * S, sum(3 * N * s * s for s in sides)

    def run() -> Any:
        options: dict[str, Any] = {"norm": "l1", "backend": "triton"} | PIXELS
        return torch.autograd.grad(masked_loss(inputs[1:], inputs[0], images, flip, mask, **options), inputs)

    # a pixel and level: three interpolations of 3 operations, and 4 cells' shares of 2; half of the pixels are masked
    compare = Cost(numbers + cells * (dtype.itemsize + 4), numbers // 2 * (4 + len(sides) * 17))
    return Case("masked_loss", f"{N} x {S} px, levels {', '.join(map(str, sides))}", run, {"compare": compare})


def layer(N: int, C: int, D: int, S: int, taps: int, dtype: torch.dtype) -> Case:
    """ops.relu_conv_bn with batch statistics, and its gradients; taps 2 halves the image."""
    x = torch.randn(N, C, S, S, dtype=dtype, device="cuda").to(memory_format=torch.channels_last)
    weights = [torch.randn(D // taps, C, 1, 1, dtype=dtype, device="cuda") * C**-0.5 for _ in range(taps)]
    inputs = [t.requires_grad_() for t in (x, *weights)]
    by = torch.randn(N, D, S // taps, S // taps, dtype=dtype, device="cuda").to(memory_format=torch.channels_last)
    m, b = N * (S // taps) ** 2, dtype.itemsize
    read, written, product = m * C * taps * b, m * D * b, 2 * m * C * D

    def run() -> Any:
        return torch.autograd.grad(relu_conv_bn(x, weights, None, training=True, backend="triton"), inputs, by)

    costs = {
        "convolve": Cost(read + written, product),
        "normalise": Cost(2 * written, 3 * m * D),
        "backward_sums": Cost(2 * written, 3 * m * D),
        "gradient_x": Cost(2 * written + read + x.numel() * b, product),
        "gradient_weights": Cost(2 * written + read, product),
    }
    return Case("relu_conv_bn", f"{N} x {S} px, {C} -> {D}{', halved' * (taps == 2)}", run, costs)


def cell(N: int, S: int, C: int, stride: int, k: int, dtype: torch.dtype) -> Case:
    """All mixed edges of a cell of S0 with batch statistics, and every gradient; the edges of a reduction cell stride."""
    graph = graph_of(S0, "normal" if stride == 1 else "reduce")
    states = [torch.randn(N, C, S, S, dtype=dtype, device="cuda").to(memory_format=torch.channels_last) for _ in range(2)]
    E, K = len(graph.edges), graph.longest
    ops, edges = torch.rand(E, K, dtype=dtype, device="cuda"), torch.rand(E, dtype=dtype, device="cuda")
    weights = 0.2 * torch.randn(graph.size(C // k), dtype=dtype, device="cuda")
    inputs = [t.requires_grad_() for t in (*states, ops, edges, weights)]
    by = torch.randn(N, graph.nodes * C, S // stride, S // stride, dtype=dtype, device="cuda")
    by = by.to(memory_format=torch.channels_last)

    def run() -> Any:
        options: dict[str, Any] = {"graph": graph, "partial_channels": k, "training": True, "backend": "triton"}
        return torch.autograd.grad(mixed_cell(states, ops, edges, weights, None, None, **options), inputs, by)

    costs: dict[str, Cost] = {}
    call = Call(graph, (N, C, S, S), k)
    for launch in (*launch_plan(call), *launch_plan(call, Needs())):
        if launch.numbers:
            so_far = costs.get(launch.kernel, Cost(0, 0))
            moved = launch.bytes(dtype.itemsize)
            costs[launch.kernel] = Cost(so_far.bytes + moved, so_far.operations + launch.operations)
    return Case("mixed_cell", f"{N} x {S} px, C {C}, k {k}, stride {stride}", run, costs)


def kernel_times(run: Callable[[], Any], rounds: int, warm_up: int = 2) -> dict[str, tuple[float, int]]:
    """(mean seconds, launches) in one call of `run`, of each kernel by its name, on the GPU's own clock."""
    for _ in range(warm_up):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            run()
        torch.cuda.synchronize()
    found: dict[str, tuple[float, int]] = {}
    for row in profiler.key_averages():
        if row.self_device_time_total:
            name = kernel_name(row.key)
            seconds, launches = found.get(name, (0.0, 0))
            found[name] = seconds + row.self_device_time_total / 1e6 / rounds, launches + row.count // rounds
    return found


def kernel_name(key: str) -> str:
    """Return a kernel's name as launches call it: a CUDA kernel of csrc/cuda is run_block<PoolSums<...>> to the profiler."""
    named = re.search(r"run_block<(?:\w+::)*([A-Z]\w*)", key)
    return re.sub(r"(?<!^)(?=[A-Z])", "_", named[1]).lower() if named else key


if __name__ == "__main__":
    for dtype in DTYPES.values():
        for case in cases(dtype, small=True):
            case.run()
    torch.cuda.synchronize()

"""mixed_cell by Triton on a GPU: as exact as eager, the same bits in each run, captured, compiled, registered."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from fastdarts.kernels.graph import Candidate, Edge, Graph
from tests.ops.cells import EVERY, S0, STRIDED, CellCall, dense, one_edge
from tests.ops.exactness import Named, assert_exact, double, gradients, uninitialised_memory_is_nan
from tests.ops.test_mixed_cell import OP, flat

pytestmark = pytest.mark.gpu
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
BACKWARD = torch.ops.fastdarts.mixed_cell_backward


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def on_gpu(named: Named) -> Named:
    """As leaves, in the memory layout that they have."""
    return {name: t.detach().cuda().requires_grad_() for name, t in named.items()}


def run(call: CellCall, named: Named, backend: str, dtype: torch.dtype) -> Named:
    """As CellCall.run, on the GPU."""
    rest = {name: None if t is None else t.cuda() for name, t in call.constants(dtype).items()}
    running = (rest["mean"], rest["var"]) if call.running else None
    out = call.forward(named, running, rest["channels"], backend)
    moved = {"mean": running[0], "var": running[1]} if running else {}
    return {"out": out.detach().clone()} | moved | gradients(out, rest["grad"], named)


def check(call: CellCall, dtype: torch.dtype) -> None:
    named = on_gpu(call.tensors(dtype))
    with uninitialised_memory_is_nan():
        got = run(call, named, "triton", dtype)
    layouts = [call.but(channels_last=flag) for flag in (False, True)]
    eager = [run(one, on_gpu(one.tensors(dtype)), "definition", dtype) for one in layouts]
    assert_exact(got, eager, run(call, double(named), "definition", torch.float64), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("candidate", "stride"),
    [*((c, 1) for c in EVERY), *((c, 2) for c in STRIDED)],
    ids=lambda value: str(int(value)),
)
def test_each_candidate_is_as_exact_as_eager(candidate: Candidate, stride: int, k: int, dtype: torch.dtype) -> None:
    for training, chosen in product((True, False), repeat=2):
        call = CellCall(dense(3, stride, (candidate,)), 5, 16 * k, 12, 10, k, training=training, chosen=chosen, seed=k)
        check(call, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("N", "C", "H", "W", "k"),
    [
        (64, 16, 32, 32, 1),
        (64, 32, 16, 16, 1),
        (16, 64, 8, 8, 1),
        (32, 16, 32, 32, 4),
        (3, 12, 8, 10, 1),
        (2, 20, 6, 4, 1),
        (2, 48, 28, 28, 2),
        (7, 40, 6, 6, 4),
        (1, 96, 14, 14, 1),
        (2, 128, 4, 4, 1),
    ],
)
def test_sizes_are_as_exact_as_eager(N: int, C: int, H: int, W: int, k: int, stride: int, dtype: torch.dtype) -> None:
    check(CellCall(dense(4, stride), N, C, H, W, k, seed=N), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("k", "chosen"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("images", ["masked", "shifted"])
def test_masked_and_shifted_images_are_as_exact_as_eager(
    images: str, stride: int, k: int, chosen: bool, dtype: torch.dtype
) -> None:
    check(CellCall(dense(2, stride), 4, 16, 16, 12, k, images=images, chosen=chosen), dtype)


@pytest.mark.parametrize(("H", "W"), [(5, 7), (1, 2), (4, 1), (15, 13)])
def test_odd_sizes_without_stride(H: int, W: int) -> None:
    check(CellCall(dense(2, candidates=EVERY), 3, 8, H, W), torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "C", "H", "W"), [(1, 36, 32, 32), (2, 72, 16, 16), (1, 128, 8, 8), (1, 6, 5, 7)])
def test_discrete_cells_are_as_exact_as_eager(stride: int, C: int, H: int, W: int, training: bool, dtype: torch.dtype) -> None:
    """One operation on each edge, affine BatchNorms, drop path."""
    codes = [c for c in (EVERY if stride == 1 else STRIDED) if c != Candidate.NONE]
    sources = [i % 3 if i > 3 else i % 2 for i in range(len(codes))]
    edges = [Edge(s, i // 4, stride if s < 2 else 1, (c,)) for i, (s, c) in enumerate(zip(sources, codes, strict=True))]
    call = CellCall(Graph(2, edges[-1].node + 1, tuple(edges)), 8, C, H, W, edges="images", affine=True, training=training)
    check(call, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("stride", "k", "chosen"), [(1, 1, False), (2, 1, False), (2, 2, False), (1, 4, True)])
def test_runs_are_bitwise_identical(stride: int, k: int, chosen: bool, dtype: torch.dtype) -> None:
    call = CellCall(dense(4, stride, EVERY if stride == 1 else STRIDED), 32, 16 * k, 16, 16, k, chosen=chosen)
    named = on_gpu(call.tensors(dtype))
    first = run(call, named, "triton", dtype)
    for _ in range(5):
        again = run(call, named, "triton", dtype)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_second_derivative_uses_definition() -> None:
    call = CellCall(dense(2), 2, 4, 6, 4, running=False)
    results = []
    for backend in ("triton", "definition"):
        named = on_gpu(call.tensors())
        out = call.forward(named, None, None, backend)
        once = torch.autograd.grad(out.square().sum(), list(named.values()), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in once), list(named.values())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "call",
    [
        CellCall(dense(2), 2, 4, 6, 4),
        CellCall(dense(2, 2), 2, 8, 6, 4, k=2, chosen=True, training=False),
        CellCall(dense(1, candidates=EVERY, inputs=1), 3, 8, 5, 3, k=4, edges=False),
        CellCall(one_edge(Candidate.SKIP), 1, 1, 1, 1),
        CellCall(dense(1, 2, STRIDED, inputs=1), 3, 8, 6, 4, edges="images", affine=True),
    ],
)
def test_opcheck(call: CellCall, dtype: torch.dtype) -> None:
    inputs, *rest = flat(call, dtype)
    args = [t.cuda() for t in inputs], *(t.cuda() if isinstance(t, Tensor) else t for t in rest)
    torch.library.opcheck(OP.default, args)
    out, statistics, saved = OP(*args)
    assert out.is_contiguous(memory_format=torch.channels_last)
    inputs, ops, edges, weights, affine, *_, channels, code, k, eps, _ = args
    for needs in product((True, False), repeat=3):
        given = inputs, ops, edges, weights, affine, statistics, saved, channels, code, k, eps, call.training, *needs, 0
        torch.library.opcheck(BACKWARD.default, (out, *given))


def graph_of(stride: int) -> Graph:
    return dense(2, stride, S0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("stride", "k", "chosen"), [(1, 1, False), (2, 4, False), (2, 4, True)])
def test_cuda_graph_replay_is_bitwise_identical(stride: int, k: int, chosen: bool, dtype: torch.dtype) -> None:
    """Replayed on other numbers, other random channels included, it gives the bits of a call of its own."""
    call = CellCall(graph_of(stride), 8, 16 * k, 16, 16, k, chosen=chosen, running=False)
    other = call.but(seed=9)
    static = on_gpu(call.tensors(dtype))
    rest = {name: t.cuda() for name, t in call.constants(dtype).items() if t is not None}

    def step() -> Named:
        out = call.forward(static, None, rest.get("channels"), "triton")
        return {"out": out} | gradients(out, rest["grad"], static)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for one in (other, call):
        want = run(one, on_gpu(one.tensors(dtype)), "triton", dtype)
        with torch.no_grad():
            for name, t in one.tensors(dtype).items():
                static[name].copy_(t)
            for name, t in one.constants(dtype).items():
                if t is not None:
                    rest[name].copy_(t)
        graph.replay()
        assert all(torch.equal(captured[name], want[name]) for name in want)


def test_calls_do_not_synchronise() -> None:
    call = CellCall(graph_of(2), 4, 16, 8, 8, k=4, chosen=True)
    named = on_gpu(call.tensors())
    rest = {name: t.cuda() for name, t in call.constants().items()}

    def step() -> None:
        out = call.forward(named, (rest["mean"], rest["var"]), rest["channels"], "triton")
        gradients(out, rest["grad"], named)

    step()  # compiles, and puts the table on the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_graph_break(backend: str) -> None:
    call = CellCall(graph_of(2), 2, 8, 6, 4, k=2)
    named = on_gpu(call.tensors())

    def forward(tensors: dict[str, Tensor], mean: Tensor, var: Tensor) -> Tensor:
        return call.forward(tensors, (mean, var), None, "triton")

    compiled = torch.compile(forward, fullgraph=True, backend=backend, dynamic=False)
    results = []
    for function in (compiled, forward):
        rest = {name: t.cuda() for name, t in call.constants().items() if t is not None}
        out = function(named, rest["mean"], rest["var"])
        results.append([out, *gradients(out, rest["grad"], named).values(), rest["mean"], rest["var"]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_keeps_mixing_weights_and_statistics() -> None:
    """Inputs and weights in autocast's dtype, alpha, beta and running statistics in their own."""
    call = CellCall(graph_of(1), 4, 16, 8, 8)
    named = on_gpu(call.tensors())
    rest = {name: t.cuda() for name, t in call.constants().items() if t is not None}
    with torch.autocast("cuda", torch.bfloat16):
        out = call.forward(named, (rest["mean"], rest["var"]), None, "triton")
    assert out.dtype == torch.bfloat16 and rest["mean"].dtype == torch.float32
    grads = gradients(out, rest["grad"].to(out.dtype), named)
    assert all(g.dtype == torch.float32 for g in grads.values())
    want = run(call, on_gpu(call.tensors()), "definition", torch.float32)
    for name, got in {"out": out, **grads}.items():
        assert float((got.double() - want[name].double()).norm()) < 0.05 * float(want[name].double().norm()), name

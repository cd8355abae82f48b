"""mixed_cell: each backend as exact as eager, first and second derivatives, registration, invalid arguments.

What it computes is in test_mixed_cell_by_hand.py, and, in whole networks against formulas, in tests/supernet/test_exact.py.
"""

import logging
import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdarts import native
from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.logs import say_once
from fastdarts.ops.backend import BackendUnavailable
from fastdarts.ops.mixed_cell import mixed_cell
from tests.ops.cells import EVERY, S0, STRIDED, CellCall, dense, one_edge
from tests.ops.exactness import assert_exact, gradients, on_threads
from tests.support import naive
from tests.support.backends import BACKENDS, needs_native

pytestmark = pytest.mark.usefixtures("one_thread")
FLOATS = [torch.float32, torch.float64]
OP = torch.ops.fastdarts.mixed_cell

# --------------------------------------------------------------------------------------------------- exactness

SIZES = [(3, 8, 8, 8), (2, 16, 4, 4), (1, 48, 14, 10), (5, 16, 7, 5), (2, 32, 6, 12), (65, 16, 4, 4), (2, 16, 56, 4)]


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("candidate", "stride"), [*((c, 1) for c in EVERY), *((c, 2) for c in STRIDED)], ids=lambda value: str(value)
)
def test_each_candidate_is_as_exact_as_eager(candidate: Candidate, stride: int, k: int, dtype: torch.dtype) -> None:
    """A cell of three nodes of nothing else, with batch and with running statistics, at sizes of its own."""
    for training in (True, False):
        number = 7 * candidate + 3 * stride + k + training
        N, C, H, W = SIZES[number % len(SIZES)]
        C = max(C, 2 * k)
        H, W = H + H % stride, W + W % stride
        chosen, layout = number % 3 == 0, number % 2 == 0
        call = CellCall(dense(3, stride, (candidate,)), N, C, H, W, k, training=training, chosen=chosen, channels_last=layout)
        call.check("cpu", dtype)


@needs_native
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("N", "C", "H", "W", "k"),
    [
        (4, 4, 4, 4, 1),
        (65, 4, 4, 6, 1),
        (1, 16, 56, 56, 1),  # not fewer channels: torch 2.15 itself crashes on a 1x1 convolution of stride 2 there
        (3, 12, 8, 10, 1),
        (2, 20, 6, 4, 1),
        (3, 24, 4, 14, 2),
        (2, 64, 8, 8, 1),
        (7, 40, 6, 6, 4),
        (3, 32, 28, 4, 4),
        (2, 48, 4, 12, 8),
        (9, 16, 16, 16, 4),
        (2, 64, 12, 8, 4),
        (1, 8, 32, 18, 4),
        (2, 6, 10, 8, 1),
    ],
)
def test_sizes_are_as_exact_as_eager(N: int, C: int, H: int, W: int, k: int, stride: int) -> None:
    CellCall(dense(2, stride), N, C, H, W, k, seed=N).check("cpu")


@needs_native
@pytest.mark.parametrize(("H", "W"), [(5, 7), (1, 2), (4, 1), (9, 4), (15, 13), (2, 3)])
def test_odd_sizes_without_stride(H: int, W: int) -> None:
    CellCall(dense(2, candidates=EVERY), 3, 8, H, W).check("cpu")


@needs_native
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("images", ["masked", "shifted"])
def test_masked_and_shifted_images_are_as_exact_as_eager(images: str, stride: int, k: int, training: bool) -> None:
    """Regions of one constant, where every maximum is a tie; means a thousand times the standard deviation."""
    CellCall(dense(2, stride), 4, 16, 16, 12, k, images=images, training=training).check("cpu")


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("edges", "affine"), [(True, False), (False, True), ("images", True)])
@pytest.mark.parametrize(("training", "running"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("k", "chosen"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("stride", [1, 2])
def test_settings_are_as_exact_as_eager(
    stride: int,
    k: int,
    chosen: bool,
    training: bool,
    running: bool,
    edges: bool | Literal["images"],
    affine: bool,
    dtype: torch.dtype,
) -> None:
    flags = {"edges": edges, "affine": affine, "chosen": chosen, "running": running, "training": training}
    call = CellCall(dense(2, stride), 2, 8, 6, 8, k, **flags, eps=1e-3)
    call.check("cpu", dtype)


@st.composite
def calls(draw: st.DrawFn) -> CellCall:
    """Any graph of up to three inputs and four nodes, any lists, any size that fits."""
    inputs, nodes, stride = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 2]))
    edges = []
    for node in range(nodes):
        sources = draw(st.lists(st.integers(0, (inputs if node == 0 else inputs + node) - 1), min_size=1, max_size=3))
        for source in sources:
            strides = stride if source < inputs else 1
            lists = st.lists(st.sampled_from(STRIDED if strides == 2 else EVERY), min_size=1, max_size=4, unique=True)
            edges.append(Edge(source, node, strides, tuple(draw(lists))))
    k = draw(st.sampled_from([1, 2, 4, 8]))
    flags = {name: draw(st.booleans()) for name in ("affine", "chosen", "running", "training", "channels_last")}
    flags["edges"] = draw(st.sampled_from([False, True, "images"]))
    return CellCall(
        Graph(inputs, nodes, tuple(edges)),
        N=draw(st.integers(1, 5)),
        C=k * draw(st.sampled_from([2, 4, 6, 8])),
        H=2 * draw(st.integers(1, 5)),
        W=2 * draw(st.integers(2, 5)),
        k=k,
        images=draw(st.sampled_from(["normal", "masked"])),
        seed=draw(st.integers(0, 2**20)),
        **flags,
    )


@needs_native
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_random_graphs_match_definition(isa: str, call: CellCall) -> None:
    """In float64, where luck has no part; by each instruction set."""
    call.check("cpu", torch.float64)


# ---------------------------------------------------------------------------------------------------- formulas


def formulas(call: CellCall, named: dict[str, Tensor]) -> Tensor:
    """NAS-Bench-201's candidates, by tests/support/naive.py, with batch statistics and all channels."""
    run = naive.Run({}, {}, tracked=False)
    shapes = call.graph.convolutions(call.C)
    pieces = named["weights"].split([math.prod(shape) for shape in shapes])
    kernels = iter([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)])
    states = [named[f"input {i}"] for i in range(call.graph.inputs)]
    for node in range(call.graph.nodes):
        total: Tensor | float = 0.0
        for e, edge in enumerate(call.graph.edges):
            if edge.node != node:
                continue
            x = states[edge.source]
            for w, candidate in zip(named["ops"][e], edge.candidates, strict=False):
                y = {
                    Candidate.CONV_1: lambda x=x: run.norm(naive.pointwise(naive.relu(x), next(kernels)), ""),
                    Candidate.CONV_3: lambda x=x: run.norm(naive.conv3x3(naive.relu(x), next(kernels), 1), ""),
                    Candidate.PLAIN_AVG_POOL_3: lambda x=x: naive.avg_pool(x, 1),
                    Candidate.SKIP: lambda x=x: x,
                    Candidate.NONE: lambda x=x: 0 * x,
                }[candidate]()
                total = total + named["edges"][e] * w * y
        states.append(total)
    return torch.cat(states[call.graph.inputs :], dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nas_bench_201_candidates_are_as_exact_as_eager(backend: str) -> None:
    """One input, three nodes, five candidates on each of the six edges."""
    names = ("NONE", "SKIP", "CONV_1", "CONV_3", "PLAIN_AVG_POOL_3")
    call = CellCall(dense(3, candidates=tuple(Candidate[n] for n in names), inputs=1), 3, 4, 5, 7, running=False)
    named = call.tensors(torch.float64)
    grad = call.constants(torch.float64)["grad"]
    got, want = call.forward(named, None, None, backend), formulas(call, named)
    named["ops"].retain_grad()
    results = [{"out": out.detach()} | gradients(out, grad, named) for out in (got, want)]
    assert_exact(results[0], [], results[1], torch.float64)


# --------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "k", "chosen"), [(1, 1, False), (2, 2, False), (1, 2, True), (2, 2, True)])
def test_gradcheck_and_gradgradcheck(stride: int, k: int, chosen: bool, training: bool, backend: str) -> None:
    call = CellCall(dense(2, stride, inputs=1), 2, 2 * k, 4, 4, k, chosen=chosen, training=training)
    named = call.tensors(torch.float64)
    rest = call.constants(torch.float64)

    def forward(*tensors: Tensor) -> Tensor:
        running = rest["mean"].clone(), rest["var"].clone()
        return call.forward(dict(zip(named, tensors, strict=True)), running, rest["channels"], backend)

    assert torch.autograd.gradcheck(forward, tuple(named.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, tuple(named.values()), fast_mode=True)


@needs_native
def test_second_derivative_uses_definition_with_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Also where one input was computed from the other: that path belongs to the caller."""
    call = CellCall(dense(2), 2, 4, 6, 4)
    named = call.tensors(torch.float64)
    say_once.cache_clear()
    results = []
    with caplog.at_level(logging.INFO, logger="fastdarts"):
        for backend in ("cpu", "definition"):
            rest = call.constants(torch.float64)
            related = named | {"input 1": named["input 0"].sin() * named["input 1"]}
            out = call.forward(related, (rest["mean"], rest["var"]), None, backend)
            once = torch.autograd.grad(out.square().sum(), list(named.values()), create_graph=True)
            moved = [rest["mean"].clone(), rest["var"].clone()]
            twice = torch.autograd.grad(sum(g.square().sum() for g in once), list(named.values()))
            assert torch.equal(moved[0], rest["mean"]) and torch.equal(moved[1], rest["var"])  # a backward updates nothing
            results.append({str(i): t.detach() for i, t in enumerate([*once, *twice, *moved])})
    assert_exact(results[0], [], results[1], torch.float64)
    (message,) = [m for m in caplog.messages if "create_graph" in m]
    assert message.startswith("mixed_cell: ")


class Asked(TorchDispatchMode):
    """Which gradients the backward op was asked for: (need_inputs, need_weights) of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.needs: list[tuple[bool, bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.name() == "fastdarts::mixed_cell_backward":
            self.needs.append(args[-4:-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [{"weights"}, {"ops"}, {"edges", "ops"}, {"input 1"}, {"input 0", "weights"}])
def test_requested_gradients_only(wanted: set[str], backend: str) -> None:
    call = CellCall(dense(2), 2, 4, 6, 4)
    named, rest = call.tensors(), call.constants()
    everything = call.run(named, backend, torch.float32)
    for name, tensor in named.items():
        tensor.requires_grad_(name in wanted)
    with Asked() as asked:
        out = call.forward(named, (rest["mean"], rest["var"]), None, backend)
        grads = gradients(out, rest["grad"], {name: named[name] for name in wanted})
    assert all(torch.equal(g, everything[name]) for name, g in grads.items())
    if backend == "cpu":
        inputs, mix = (bool(wanted & names) for names in ({"input 0", "input 1"}, {"ops", "edges"}))
        assert asked.needs == [(inputs, mix, "weights" in wanted)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_may_have_any_strides(backend: str) -> None:
    call = CellCall(dense(2, 2), 3, 4, 8, 6)
    named, rest = call.tensors(), call.constants()
    out = call.forward(named, (rest["mean"], rest["var"]), None, backend)
    grad = rest["grad"]
    rows = grad[:1, :, :, :1].expand(grad.shape)
    spread = torch.stack([grad, grad + 1], -1)[..., 0]
    views = [(grad, grad.contiguous(memory_format=torch.channels_last)), (spread, grad), (rows, rows.contiguous())]
    for view, plain in views:
        ours, same = (torch.autograd.grad(out, list(named.values()), g, retain_graph=True) for g in (view, plain))
        for a, b in zip(ours, same, strict=True):
            assert torch.equal(a, b) if backend == "cpu" else torch.allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_may_be_modified_in_place(backend: str) -> None:
    """Callers modify it in place (drop-path, auxiliary skips): the gradients stay right."""
    call = CellCall(dense(3), 2, 4, 4, 4)
    named, rest = call.tensors(), call.constants()
    want = gradients(3 * call.forward(named, None, None, backend), rest["grad"], named)
    out = call.forward(named, None, None, backend)
    out *= 3
    got = gradients(out, rest["grad"], named)
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_forwards_before_backward(backend: str) -> None:
    """Running statistics move in between; saved tensors are each forward's own."""
    call = CellCall(dense(2), 2, 4, 4, 6)
    first, second = call.tensors(), call.but(seed=5).tensors()
    rest = call.constants()
    want = [call.run(named, backend, torch.float32) for named in (first, second)]
    outs = [call.forward(named, (rest["mean"], rest["var"]), None, backend) for named in (first, second)]
    for out, named, one in zip(outs, (first, second), want, strict=True):
        got = gradients(out, rest["grad"], named)
        assert all(torch.equal(got[name], one[name]) for name in got)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_may_have_any_layout(backend: str) -> None:
    """NCHW, channels_last, and other layouts give the same numbers."""
    call = CellCall(dense(2, 2), 3, 8, 6, 8, k=2)
    named = call.tensors(torch.float64)
    want = call.run(named, backend, torch.float64)
    for lay in (
        lambda t: t.contiguous(),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: torch.stack([t, t], 4)[..., 0],
    ):
        other = {n: lay(t.detach()).requires_grad_() if t.dim() == 4 else t for n, t in named.items()}
        assert_exact(call.run(other, backend, torch.float64), [], want, torch.float64)


# ---------------------------------------------------------------------------------- running statistics, threads


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [True, False])
def test_running_statistics_update_once_per_training_forward(grad: bool, backend: str) -> None:
    call = CellCall(one_edge(Candidate.MAX_POOL_3, Candidate.AVG_POOL_3), 3, 4, 5, 6)
    named = call.tensors(torch.float64)
    rest = call.constants(torch.float64)
    x = named["input 0"]
    pooled = torch.cat([naive.max_pool(x, 3, 1, 1), naive.avg_pool(x, 1)], 1).detach()
    mean, var = pooled.mean((0, 2, 3)), pooled.var((0, 2, 3), unbiased=True)
    want = rest["mean"].clone(), rest["var"].clone()
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            mixed_cell(
                [x],
                named["ops"],
                named["edges"],
                named["weights"],
                (rest["mean"], rest["var"]),
                None,
                graph=call.graph,
                training=True,
                momentum=0.3,
                backend=backend,
            )
            want = 0.7 * want[0] + 0.3 * mean, 0.7 * want[1] + 0.3 * var
            naive.assert_close(rest["mean"], want[0], "mean")
            naive.assert_close(rest["var"], want[1], "variance")
    before = rest["mean"].clone(), rest["var"].clone()
    call.but(training=False).forward(named, (rest["mean"], rest["var"]), None, backend)
    assert torch.equal(rest["mean"], before[0]) and torch.equal(rest["var"], before[1])


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("stride", "k", "chosen", "C"), [(1, 1, False, 16), (2, 2, False, 16), (1, 4, True, 16), (1, 4, False, 48)]
)
def test_bitwise_identical_for_any_number_of_threads(stride: int, k: int, chosen: bool, C: int, dtype: torch.dtype) -> None:
    flags = {"chosen": chosen, "edges": "images", "affine": True}
    call = CellCall(dense(2, stride, EVERY if stride == 1 else STRIDED), 5, C, 12, 10, k, **flags)
    named = call.tensors(dtype)
    first, *others = on_threads(lambda: call.run(named, "cpu", dtype))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.fixture
def choose() -> Iterator[Callable[[str], bool]]:
    """Choose an instruction set; False where this processor does not have it."""

    def chosen(name: str) -> bool:
        try:
            native.required().set_isa(name)
        except ValueError:
            return False
        return True

    yield chosen
    chosen("best")


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["avx512", "avx512vl"])
@pytest.mark.parametrize("C", [36, 144])
def test_wide_cells_are_as_exact_as_eager(C: int, name: str, dtype: torch.dtype, choose: Callable[[str], bool]) -> None:
    """With whole vectors and with short ones; by default either may run."""
    if not choose(name):
        pytest.skip("this processor has no AVX-512")
    CellCall(dense(2, 1, S0 if C > 64 else EVERY), 2, C, 10, 8, edges="images", affine=True).check("cpu", dtype)


@needs_native
def test_only_wide_cells_take_short_vectors(choose: Callable[[str], bool]) -> None:
    """By default: 16 channels are one vector of 64 bytes; 36 float32 channels take 40 lanes or 48, by the processor."""
    if not choose("avx512"):
        pytest.skip("this processor has no AVX-512")

    def saved(name: str, C: int) -> int:
        assert choose(name)
        return native.required().mixed_cell_saved(dense(1).encode(), [2, C, 8, 8], 1, 4)

    assert saved("avx512vl", 36) < saved("avx512", 36)
    assert saved("best", 36) in (saved("avx512vl", 36), saved("avx512", 36))
    assert saved("best", 8) == saved("avx512", 8)


# ------------------------------------------------------------------------------------------------ registration


def flat(call: CellCall, dtype: torch.dtype) -> tuple:
    """The registered op's arguments."""
    named, rest = {n: t.detach() for n, t in call.tensors(dtype).items()}, call.constants(dtype)
    inputs = [named[f"input {i}"].contiguous(memory_format=torch.channels_last) for i in range(call.graph.inputs)]
    running = (None, None) if call.training else (rest["mean"], rest["var"])
    mix = named["ops"], call.edge_weights(named), named["weights"], named.get("affine")
    return inputs, *mix, *running, rest["channels"], call.graph.encode(), call.k, 1e-5, 0


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "call",
    [
        CellCall(dense(2), 2, 4, 6, 4),
        CellCall(dense(2, 2), 2, 8, 6, 4, k=2, chosen=True, training=False),
        CellCall(dense(1, candidates=EVERY, inputs=1), 3, 8, 5, 3, k=4, edges=False),
        CellCall(one_edge(Candidate.SKIP), 1, 1, 1, 1),
        CellCall(dense(2, 2, STRIDED), 2, 4, 6, 4, edges="images", affine=True),
    ],
)
def test_opcheck(call: CellCall, dtype: torch.dtype) -> None:
    args = flat(call, dtype)
    torch.library.opcheck(OP.default, args)
    out, statistics, saved = OP(*args)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert statistics.dtype == torch.float64
    inputs, ops, edges, weights, affine, *_, channels, code, k, eps, _ = args
    every = product((True, False), repeat=3)
    for needs in every if dtype == torch.float64 else [(True, True, True)]:
        rest = inputs, ops, edges, weights, affine, statistics, saved, channels, code, k, eps, call.training, *needs, 0
        torch.library.opcheck(torch.ops.fastdarts.mixed_cell_backward.default, (out, *rest))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_break(backend: str) -> None:
    call = CellCall(dense(1, 2), 2, 8, 6, 4, k=2)
    named, rest = call.tensors(), call.constants()

    def forward(tensors: dict[str, Tensor], mean: Tensor, var: Tensor) -> Tensor:
        return call.forward(tensors, (mean, var), None, backend)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=False)
    results = []
    for function in (compiled, forward):
        rest = call.constants()
        out = function(named, rest["mean"], rest["var"])
        results.append([out, *gradients(out, rest["grad"], named).values(), rest["mean"], rest["var"]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["auto", "definition"])
def test_autocast_matches_definition(backend: str) -> None:
    call = CellCall(dense(1), 2, 4, 6, 4, edges=False)
    named = call.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        out = call.forward(named, None, None, backend)
        with pytest.raises(BackendUnavailable, match="not for bfloat16"):
            call.forward(named, None, None, "cpu")
    exact = call.forward(named, None, None, "definition").detach()
    assert float((out.detach() - exact).abs().max()) < 0.1 * float(exact.abs().max())
    grads = gradients(out, call.constants()["grad"].to(out.dtype), named)
    assert all(g.dtype == torch.float32 for g in grads.values())


# ------------------------------------------------------------------------------------------------------- input

PAIR = (Candidate.NONE, Candidate.SKIP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, ()), "at least one input and one node"),
        ((2, 2, (Edge(0, 0, 1, PAIR),)), "reach each of 2 nodes"),
        ((2, 2, (Edge(0, 1, 1, PAIR), Edge(0, 0, 1, PAIR))), "ordered by node"),
        ((2, 1, (Edge(2, 0, 1, PAIR),)), "edge 0 leads from state 2 into node 0, which is state 2"),
        ((2, 1, (Edge(-1, 0, 1, PAIR),)), "from state -1"),
        ((2, 1, (Edge(0, 0, 3, PAIR),)), "stride 3"),
        ((1, 2, (Edge(0, 0, 1, PAIR), Edge(1, 1, 2, PAIR))), "edge 1 has stride 2"),
        ((2, 1, (Edge(0, 0, 1, PAIR), Edge(1, 0, 2, PAIR))), "have the same stride"),
        ((1, 1, (Edge(0, 0, 1, ()),)), "edge 0 needs candidates"),
        ((1, 1, (Edge(0, 0, 1, (99,)),)), "each a Candidate"),
        ((1, 1, (Edge(0, 0, 1, (*PAIR, Candidate.SKIP)),)), "without repetition"),
        ((1, 1, (Edge(0, 0, 2, (Candidate.CONV_3,)),)), "stride 2, which CONV_3 cannot have"),
    ],
)
def test_invalid_graphs_are_rejected(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(*arguments)


@pytest.mark.parametrize("graph", [dense(4), dense(3, 2, STRIDED), one_edge(Candidate.CONV_1, Candidate.CONV_3, *S0)])
def test_graph_is_hashable_and_encodable(graph: Graph) -> None:
    assert Graph.decode(graph.encode()) == graph and hash(Graph.decode(graph.encode())) == hash(graph)
    for C in (2, 4, 10):
        assert graph.size(C) == sum(map(math.prod, graph.convolutions(C)))


def test_packing_of_one_edge() -> None:
    graph = one_edge(*S0, stride=2)
    separable = [((6, 1, s, s), (6, 6, 1, 1)) for s in (3, 5)]
    want = [(3, 6, 1, 1)] * 2 + [shape for pair in separable for shape in pair * 2] + [s for pair in separable for s in pair]
    assert graph.convolutions(6) == want
    assert graph.norms == 1 + 1 + 1 + 2 + 2 + 1 + 1
    assert graph.encode() == [1, 1, 1, 0, 0, 2, 8, *range(8)]


def arguments(**changes: Any) -> dict[str, Any]:
    """A good call of a strided cell with k = 2, changed."""
    call = CellCall(dense(1, 2), 2, 8, 6, 4, k=2, chosen=True)
    named, rest = call.tensors(), call.constants()
    good = {
        "inputs": [named["input 0"], named["input 1"]],
        "ops": named["ops"],
        "edges": named["edges"],
        "weights": named["weights"],
        "running": (rest["mean"], rest["var"]),
        "channels": rest["channels"],
        "graph": call.graph,
        "partial_channels": 2,
        "training": True,
    }
    return good | {name: change(good[name]) if isinstance(change, Callable) else change for name, change in changes.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": lambda x: x[:1]}, "graph has 2 inputs, got 1"),
        ({"inputs": lambda x: [x[0][0], x[1]]}, r"inputs must be floating point \(N, C, H, W\)"),
        ({"inputs": lambda x: [x[0].long(), x[1]]}, "inputs must be floating point"),
        ({"inputs": lambda x: [x[0][:0], x[1]]}, "not empty"),
        ({"inputs": lambda x: [x[0], x[1][:1]]}, r"inputs must be \(2, 8, 6, 4\), got \(1, 8, 6, 4\)"),
        ({"inputs": lambda x: [x[0], x[1].double()]}, "inputs must be float32 on cpu, as the input is, got float64"),
        ({"inputs": lambda x: [t[:, :, :5] for t in x]}, "sides must be even, got 5 x 4"),
        ({"inputs": lambda x: [t[:, :7] for t in x]}, "partial_channels = 2 must divide the inputs' 7 channels"),
        ({"inputs": lambda x: [t[:, :6] for t in x]}, "C/k = 3 is odd"),
        ({"partial_channels": 0}, "partial_channels = 0 must divide"),
        ({"partial_channels": 1}, "channels must be None|weights must be"),
        ({"ops": lambda t: t[:1]}, r"ops must be \(2, K\) with K at least 8, got \(1, 9\)"),
        ({"ops": lambda t: t[:, :7]}, r"got \(2, 7\)"),
        ({"ops": lambda t: t.double()}, "ops must be float32"),
        ({"ops": lambda t: t.to("meta")}, "ops must be float32 on cpu, as the input is, got float32 on meta"),
        ({"edges": lambda t: t[:1]}, r"edges must be \(2,\), got \(1,\)"),
        ({"edges": lambda t: t.detach()[:, None]}, r"edges must be \(2, 2\), got \(2, 1\)"),
        ({"edges": lambda t: t[:, None].expand(2, 2)}, "a weight for each image, get no gradient"),
        ({"affine": torch.ones(2, 3)}, "affine must be"),
        ({"weights": lambda t: t[:-1]}, "weights must be"),
        ({"weights": lambda t: t.half()}, "weights must be float32 on cpu, as the input is, got float16"),
        ({"running": lambda r: (r[0][:-1], r[1])}, "running mean must be"),
        ({"running": lambda r: (r[0], r[1].double())}, "running variance must be"),
        ({"channels": lambda t: t[:, :3]}, r"channels must be int64 \(2, 4\) on cpu"),
        ({"channels": lambda t: t.int()}, "channels must be int64"),
        ({"momentum": 1.5}, r"momentum must lie within 0\.\.1"),
        ({"eps": 0.0}, "eps above 0"),
    ],
)
def test_invalid_arguments_are_named(changes: dict[str, Any], message: str, backend: str) -> None:
    given = arguments(**changes)
    tensors = [given.pop(name) for name in ("inputs", "ops", "edges", "weights", "running", "channels")]
    with pytest.raises(ValueError, match=message):
        mixed_cell(*tensors, **given, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_value_per_channel_is_rejected(backend: str) -> None:
    """As eager refuses it; without a BatchNorm, or with running statistics, it is none of its business."""
    call = CellCall(one_edge(Candidate.DIL_CONV_3), 1, 4, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        call.run(call.tensors(), backend, torch.float32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        call.but(training=False).forward(call.tensors(), None, None, backend)
    call.but(training=False).run(call.tensors(), backend, torch.float32)
    call.but(graph=one_edge(Candidate.SKIP)).run(call.but(graph=one_edge(Candidate.SKIP)).tensors(), backend, torch.float32)


def test_unknown_backend_is_rejected() -> None:
    call = CellCall(one_edge(Candidate.SKIP))
    with pytest.raises(ValueError, match="mixed_cell has no backend 'cuda9'; it has auto, cpu, triton, definition"):
        call.forward(call.tensors(), None, None, "cuda9")
    with pytest.raises(BackendUnavailable, match="not for float16"):
        call.run(call.tensors(torch.float16), "cpu", torch.float16)


@needs_native
def test_invalid_channels_are_rejected() -> None:
    call = CellCall(dense(1), 2, 8, 4, 4, k=2, chosen=True)
    named, channels = call.tensors(), call.constants()["channels"]
    for wrong in (-1, 8):
        channels[1, 2] = wrong
        with pytest.raises((RuntimeError, IndexError)):
            call.forward(named, None, channels, "cpu")

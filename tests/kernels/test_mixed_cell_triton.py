"""mixed_cell's kernels in the interpreter: as exact as eager, requested gradients only, bitwise reproducible.

The interpreter takes about a millisecond for each tile: graphs of a few edges, images of some ten pixels.
"""

import pytest
import torch
from torch import Tensor

from fastdarts.kernels import mixed_cell as kernels
from fastdarts.kernels.arguments import MixedCell, MixedCellBackward
from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.ops import batch_norm
from tests.ops.cells import EVERY, STRIDED, CellCall, dense, one_edge
from tests.ops.exactness import Named, assert_exact, double, uninitialised_memory_is_nan

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = (Candidate.SEP_CONV_3, Candidate.NONE, Candidate.MAX_POOL_3, Candidate.SKIP)
SMALL = {"N": 2, "C": 8, "H": 5, "W": 7}  # 70 pixels: two parts, the second nearly empty
STRIDED_SMALL = {"N": 2, "C": 8, "H": 10, "W": 14}


def channels_last(t: Tensor) -> Tensor:
    return t.detach().contiguous(memory_format=torch.channels_last)


def by_kernels(
    call: CellCall, dtype: torch.dtype, needs: tuple[bool, bool, bool] = (True, True, True), autocast: bool = False
) -> Named:
    """The output, the running statistics after it, and the gradients, in memory that is NaN before it is written.

    autocast  affine parameters are float32
    """
    named, rest = call.tensors(dtype), call.constants(dtype)
    inputs = [channels_last(named[f"input {i}"]) for i in range(call.graph.inputs)]
    ops, weights, affine = (named[name].detach() if name in named else None for name in ("ops", "weights", "affine"))
    affine = affine.float() if autocast else affine
    edges = call.edge_weights(named)
    edges = None if edges is None else edges.detach()
    running = (rest["mean"], rest["var"]) if call.running else None
    mean, var = (None, None) if call.training or running is None else running
    cell = rest["channels"], call.graph.encode(), call.k, call.eps
    with uninitialised_memory_is_nan():
        out, statistics, saved = kernels.forward(MixedCell(inputs, ops, edges, weights, affine, mean, var, *cell, 0))
        result = {"out": out.clone()}
        out.fill_(float("nan"))  # nobody's state
        given = channels_last(rest["grad"]), inputs, ops, edges, weights, affine, statistics, saved, *cell, mean is None
        grad_inputs, *of_parameters = kernels.backward(MixedCellBackward(*given, *needs, 0))
    if running:
        if call.training:
            batch_norm.update_running(running, statistics, out.numel() // out.shape[1], 0.1)
        result |= {"mean": running[0], "var": running[1]}
    result |= {f"d input {i}": g for i, g in enumerate(grad_inputs)}
    given = zip(("ops", "edges", "weights", "affine"), of_parameters, strict=True)
    return result | {f"d {name}": g for name, g in given if name in named}


def check(call: CellCall, dtype: torch.dtype = torch.float32) -> None:
    layouts = [call.but(channels_last=flag) for flag in (False, True)]
    eager = [one.run(one.tensors(dtype), "definition", dtype) for one in layouts]
    reference = call.run(double(call.tensors(dtype)), "definition", torch.float64)
    assert_exact(by_kernels(call, dtype), eager, reference, dtype)


@pytest.mark.parametrize(
    ("candidate", "stride"),
    [*((c, 1) for c in EVERY), *((c, 2) for c in STRIDED)],
    ids=lambda value: str(int(value)),
)
def test_each_candidate_is_as_exact_as_eager(candidate: Candidate, stride: int) -> None:
    """Two nodes of nothing else; with all channels, with the first half of them, with a quarter drawn at random."""
    number = candidate + stride
    k = (1, 2, 4)[number % 3]
    sizes = STRIDED_SMALL if stride == 2 else SMALL
    inputs = 1 if candidate == Candidate.SEP_CONV_7 else 2  # 49 taps take their time
    call = CellCall(
        dense(2, stride, (candidate,), inputs=inputs), **sizes, k=k, chosen=k == 4, training=number % 4 > 0, seed=number
    )
    check(call.but(C=8 * k))


@pytest.mark.parametrize("candidate", [Candidate.SEP_CONV_3, Candidate.DIL_CONV_5, Candidate.AVG_POOL_3, Candidate.CONV_3])
def test_half_precision_is_as_exact_as_eager(candidate: Candidate) -> None:
    check(CellCall(dense(2, 1, (candidate, Candidate.MAX_POOL_3), inputs=1), **SMALL), torch.float16)


def test_half_precision_with_stride() -> None:
    check(CellCall(dense(1, 2, (*FEW, Candidate.AVG_POOL_3), inputs=2), **STRIDED_SMALL, k=2), torch.float16)


@pytest.mark.parametrize(
    ("training", "running", "edges"), [(True, False, False), (False, True, True), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize(("stride", "k", "chosen"), [(1, 1, False), (2, 2, True)])
def test_settings_are_as_exact_as_eager(stride: int, k: int, chosen: bool, training: bool, running: bool, edges: bool) -> None:
    sizes = STRIDED_SMALL if stride == 2 else SMALL
    call = CellCall(
        dense(2, stride, FEW, inputs=1), **sizes, k=k, edges=edges, chosen=chosen, running=running, training=training
    )
    check(call.but(eps=1e-3))


DISCRETE = {"edges": "images", "affine": True}  # as drop path trains a discrete cell


@pytest.mark.parametrize(
    ("candidate", "stride"),
    [
        (Candidate.SEP_CONV_3, 1),
        (Candidate.SEP_CONV_3, 2),
        (Candidate.CONV_3, 1),
        (Candidate.SKIP, 2),
        (Candidate.MAX_POOL_3, 1),
        (Candidate.AVG_POOL_3, 2),
        (Candidate.PLAIN_MAX_POOL_3, 2),
    ],
    ids=lambda value: str(int(value)),
)
def test_affine_norms_and_weights_of_images_are_as_exact_as_eager(candidate: Candidate, stride: int) -> None:
    sizes = {"N": 4, "C": 6, "H": 10, "W": 8} if stride == 2 else {"N": 4, "C": 6, "H": 5, "W": 7}
    call = CellCall(dense(2, stride, (candidate,), inputs=1), **sizes, **DISCRETE, seed=int(candidate))
    check(call.but(training=candidate % 3 > 0))


@pytest.mark.parametrize(
    ("stride", "k", "chosen", "edges", "training"),
    [(1, 1, False, True, True), (2, 2, False, "images", False), (1, 4, True, "images", True), (2, 1, False, False, False)],
)
def test_affine_settings_are_as_exact_as_eager(stride: int, k: int, chosen: bool, edges: bool | str, training: bool) -> None:
    sizes = STRIDED_SMALL if stride == 2 else SMALL
    graph = dense(2, stride, (*FEW, Candidate.PLAIN_MAX_POOL_3), inputs=1)
    check(CellCall(graph, **sizes, k=k, chosen=chosen, edges=edges, training=training, affine=True, seed=3))


def test_half_precision_of_discrete_cell() -> None:
    graph = Graph(2, 2, tuple(Edge(i % 3, i // 2, 1, (c,)) for i, c in enumerate((*FEW[:1] * 2, *FEW[2:]))))
    check(CellCall(graph, 3, 8, 5, 7, **DISCRETE), torch.float16)


def test_affine_parameters_may_be_float32_as_under_autocast() -> None:
    graph = dense(1, 1, (Candidate.SEP_CONV_3, Candidate.AVG_POOL_3), inputs=1)
    call = CellCall(graph, **SMALL, **DISCRETE)
    got, want = (by_kernels(call, torch.float16, autocast=wide) for wide in (True, False))
    affine, rounded = got.pop("d affine"), want.pop("d affine")
    assert affine.dtype == torch.float32 and torch.equal(affine.half(), rounded)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_running_statistics_may_be_strided() -> None:
    call = CellCall(dense(1, 1, FEW, inputs=1), **SMALL, training=False)
    named, rest = call.tensors(torch.float32), call.constants()
    mixed = [channels_last(named["input 0"])], *(named[name].detach() for name in ("ops", "edges", "weights")), None
    whole, strided = (rest["mean"], rest["var"]), torch.stack((rest["mean"], rest["var"]), 1).unbind(1)
    cell = None, call.graph.encode(), 1, call.eps, 0
    outs = [kernels.forward(MixedCell(*mixed, *running, *cell)).out for running in (whole, strided)]
    assert torch.equal(*outs)


@pytest.mark.parametrize(("stride", "k", "chosen"), [(1, 1, False), (1, 4, False), (2, 2, False), (2, 4, True)])
@pytest.mark.parametrize("images", ["masked", "shifted"])
def test_masked_and_shifted_images_are_as_exact_as_eager(images: str, stride: int, k: int, chosen: bool) -> None:
    """Regions of one constant, where every maximum is a tie; means a thousand times the standard deviation."""
    listed = (Candidate.MAX_POOL_3, Candidate.AVG_POOL_3, Candidate.DIL_CONV_3)
    call = CellCall(dense(1, stride, listed, inputs=2), 1, 4 * k, 12, 16, k, images=images, chosen=chosen)
    check(call)


UNEVEN = Graph(
    3,
    3,
    (
        Edge(1, 0, 1, (Candidate.DIL_CONV_3, Candidate.CONV_1)),
        Edge(1, 0, 1, (Candidate.PLAIN_AVG_POOL_3, Candidate.SKIP, Candidate.AVG_POOL_3)),
        Edge(0, 1, 1, (Candidate.SEP_CONV_3,)),
        Edge(3, 2, 1, (Candidate.MAX_POOL_3, Candidate.NONE)),
        Edge(2, 2, 1, (Candidate.AVG_POOL_3, Candidate.MAX_POOL_3)),
    ),
)


@pytest.mark.parametrize(("k", "chosen"), [(1, False), (3, False), (3, True)])
def test_edges_with_different_candidates(k: int, chosen: bool) -> None:
    """An edge twice, nodes that nobody reads, channels that fill no power of two."""
    check(CellCall(UNEVEN, 1, 6 * k, 9, 8, k, chosen=chosen))


@pytest.mark.parametrize("size", [(1, 17, 3, 4), (3, 20, 1, 2), (5, 2, 4, 1)])
def test_sizes_are_as_exact_as_eager(size: tuple[int, int, int, int]) -> None:
    check(CellCall(dense(2, candidates=(Candidate.SEP_CONV_3, Candidate.MAX_POOL_3, Candidate.SKIP), inputs=1), *size))


@pytest.mark.parametrize(("stride", "affine", "training"), [(1, False, True), (2, False, True), (1, True, False)])
def test_requested_gradients_only_and_bitwise_identical(stride: int, affine: bool, training: bool) -> None:
    candidates = (Candidate.SEP_CONV_3 if affine else Candidate.DIL_CONV_3, Candidate.SKIP, Candidate.AVG_POOL_3)
    sizes = STRIDED_SMALL if stride == 2 else SMALL
    call = CellCall(dense(2, stride, candidates, inputs=1), **sizes, k=2, affine=affine, training=training)
    whole = by_kernels(call, torch.float32)
    for needs in ((False, True, False), (True, False, False), (False, False, True)):
        got = by_kernels(call, torch.float32, needs)
        asked = {"d input 0": needs[0], "d ops": needs[1], "d edges": needs[1], "d weights": needs[2]}
        asked |= {"d affine": needs[2]} if affine else {}
        for name, wanted in asked.items():
            assert (name in got and got[name].numel() > 0) == wanted
            assert not wanted or torch.equal(got[name], whole[name])
        assert torch.equal(got["out"], whole["out"])


def test_too_many_inputs_are_rejected() -> None:
    graph = Graph(5, 1, tuple(Edge(i, 0, 1, (Candidate.SKIP,)) for i in range(5)))
    with pytest.raises(ValueError, match="at most 4 inputs, got 5"):
        by_kernels(CellCall(graph, **SMALL), torch.float32)


def test_single_pixel_image() -> None:
    check(CellCall(one_edge(Candidate.SKIP), 1, 1, 1, 1))

"""mixed_cell and relu_conv_bn over several ranks in the interpreter: what one rank has with the images of all.

test_mixed_cell_triton.py and test_relu_conv_bn_triton.py have the same kernels on one rank.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.kernels import mixed_cell, ranks, relu_conv_bn, relu_conv_bn_backward
from fastdarts.kernels.arguments import MixedCell, MixedCellBackward
from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.ops import batch_norm
from fastdarts.ops import relu_conv_bn as definitions
from fastdarts.ops.mixed_cell import definition
from fastdarts.ops.relu_conv_bn import definition as layer
from tests.kernels.turns import Turns, on_ranks, share, whole
from tests.ops import cells
from tests.ops.cells import dense
from tests.ops.exactness import Named, assert_exact, double, gradients, uninitialised_memory_is_nan
from tests.ops.test_relu_conv_bn import LayerCall as Layer

pytestmark = pytest.mark.usefixtures("one_thread")  # seeds: those for which no edge has the weight 0
SEPARABLE = (Candidate.SEP_CONV_3, Candidate.MAX_POOL_3, Candidate.SKIP)
EPS = 1e-4


def by_image(name: str) -> bool:
    return name == "out" or name.startswith(("d input", "d x"))


def own_edges(call: cells.CellCall, named: Named, rank: Turns) -> Tensor | None:
    """The edges' weights; of a rank's images, if each has its own."""
    edges = call.edge_weights(named)
    return edges if edges is None or edges.dim() == 1 else edges.chunk(rank.size, 1)[rank.rank].contiguous()


def cell_by_kernels(
    call: cells.CellCall, dtype: torch.dtype, rank: Turns, needs: tuple[bool, bool, bool] = (True,) * 3
) -> Named:
    """A rank's output, running statistics and gradients for its images of the call's."""
    named, rest = call.tensors(dtype), call.constants(dtype)
    inputs = [share(named[f"input {i}"], rank).contiguous(memory_format=torch.channels_last) for i in range(call.graph.inputs)]
    ops, weights, affine = (named[name].detach() if name in named else None for name in ("ops", "weights", "affine"))
    edges = own_edges(call, named, rank)
    running = (rest["mean"], rest["var"]) if call.running else None
    mean, var = (None, None) if call.training or running is None else running
    constant = rest["channels"], call.graph.encode(), call.k, call.eps
    given = inputs, ops, None if edges is None else edges.detach(), weights, affine
    out, statistics, saved = mixed_cell.forward(MixedCell(*given, mean, var, *constant, 0), rank)
    grad = share(rest["grad"], rank).contiguous(memory_format=torch.channels_last)
    back = MixedCellBackward(grad, *given, statistics, saved, *constant, mean is None, *needs, 0)
    grad_inputs, *of_parameters = mixed_cell.backward(back, rank)
    result = {"out": out}
    if running:
        if call.training:
            batch_norm.update_running(running, statistics, rank.size * out.numel() // out.shape[1], 0.1)
        result |= {"mean": running[0], "var": running[1]}
    result |= {f"d input {i}": g for i, g in enumerate(grad_inputs)}
    grads = zip(("ops", "edges", "weights", "affine"), of_parameters, strict=True)
    return result | {f"d {name}": g for name, g in grads if name in named}


def cell_by_definition(call: cells.CellCall, dtype: torch.dtype, rank: Turns, exact: bool) -> Named:
    """The same by the definition with the same ranks, on what the tensors are in `dtype`, in float64 where `exact`."""
    named = {n: share(t, rank) if n.startswith("input") else t.detach() for n, t in call.tensors(dtype).items()}
    named = {n: (t.double() if exact else t).requires_grad_() for n, t in named.items()}
    rest = call.constants(torch.float64 if exact else dtype)
    running = (rest["mean"], rest["var"]) if call.running else None
    inputs = [named[f"input {i}"] for i in range(call.graph.inputs)]
    mixed = named["ops"], own_edges(call, named, rank), named["weights"], named.get("affine"), running, rest["channels"]
    mixed = *mixed, call.graph, call.k
    out = definition(inputs, *mixed, call.training, 0.1, call.eps, rank)
    moved = {"mean": running[0], "var": running[1]} if running else {}
    return {"out": out.detach()} | moved | gradients(out, share(rest["grad"], rank), named)


def check_cell(call: cells.CellCall, dtype: torch.dtype = torch.float32, size: int = 2) -> None:
    """Against one process with all images, and every rank against the definition with as many ranks.

    Not the latter where means are large: a rank's share of sums that cancel over the batch says how lucky eager was.
    """
    with uninitialised_memory_is_nan():
        got, _ = on_ranks(size, lambda rank: cell_by_kernels(call, dtype, rank))
    layouts = [call.but(channels_last=flag) for flag in (False, True)]
    eager = [one.run(one.tensors(dtype), "definition", dtype) for one in layouts]
    with pytest.MonkeyPatch.context() as patch:  # as other codes have it: with 12 channels torch stays within bounds
        patch.setattr(definitions, "halving_convolution", strided)
        eager.append(layouts[1].run(layouts[1].tensors(dtype), "definition", dtype))
    assert_exact(whole(got, by_image), eager, call.run(double(call.tensors(dtype)), "definition", torch.float64), dtype)
    if call.images == "shifted":
        return
    want, _ = on_ranks(size, lambda rank: cell_by_definition(call, dtype, rank, True))
    eagers = [on_ranks(size, lambda rank, one=one: cell_by_definition(one, dtype, rank, False))[0] for one in layouts]
    for rank in range(size):
        assert_exact(got[rank], [e[rank] for e in eagers], want[rank], dtype)


def test_waves_and_parts_match_definition() -> None:
    """Two waves; each rank's pixels are two parts, the second nearly empty."""
    check_cell(cells.CellCall(dense(2, 1, SEPARABLE, inputs=1), 4, 8, 5, 7))


def test_affine_norms_and_weights_of_images_match_definition() -> None:
    """Gradients of affine parameters are of the rank's own images, those of the middle BNs too."""
    graph = dense(1, 1, (Candidate.SEP_CONV_3, Candidate.PLAIN_MAX_POOL_3, Candidate.CONV_1), inputs=1)
    check_cell(cells.CellCall(graph, 4, 8, 5, 7, edges="images", affine=True, seed=1))


@pytest.mark.parametrize("size", [2, 3])
def test_reduction_cell_matches_definition(size: int) -> None:
    candidates = (*SEPARABLE, Candidate.DIL_CONV_3, Candidate.AVG_POOL_3)
    check_cell(cells.CellCall(dense(1, 2, candidates), 2 * size, 16, 6, 8, 2, seed=5), size=size)


def test_half_precision_and_dense_convolutions_match_definition() -> None:
    graph = dense(2, 1, (Candidate.CONV_1, Candidate.DIL_CONV_3, Candidate.AVG_POOL_3), inputs=1)
    check_cell(cells.CellCall(graph, 4, 8, 5, 4, seed=5), torch.float16)


@pytest.mark.parametrize("images", ["masked", "shifted"])
def test_masked_and_shifted_images_match_definition(images: str) -> None:
    call = cells.CellCall(
        dense(1, 2, (Candidate.MAX_POOL_3, Candidate.AVG_POOL_3, Candidate.DIL_CONV_3)), 2, 16, 12, 16, 4, images, seed=5
    )
    check_cell(call.but(chosen=True))


@pytest.mark.parametrize(("training", "running", "edges"), [(True, False, False), (False, False, True)])
def test_without_running_statistics_matches_definition(training: bool, running: bool, edges: bool) -> None:
    settings = {"training": training, "running": running, "edges": edges, "seed": 2}
    check_cell(cells.CellCall(dense(1, 1, SEPARABLE), 4, 8, 3, 4, **settings))


def test_running_statistics_are_not_summed() -> None:
    call = cells.CellCall(dense(1, 1, SEPARABLE, inputs=1), 4, 8, 3, 4, training=False)
    got, synchronised = on_ranks(2, lambda rank: cell_by_kernels(call, torch.float32, rank))
    assert synchronised[0].sums == []
    alone, _ = on_ranks(1, lambda rank: cell_by_kernels(call, torch.float32, rank))
    assert torch.equal(whole(got, by_image)["out"], alone[0]["out"])


def test_requested_gradients_need_fewer_sums() -> None:
    """Two sums in each direction for a wave, one row a rank and BN forward; none for convolutions that nobody asks about."""
    call = cells.CellCall(dense(2, 1, SEPARABLE, inputs=1), 4, 8, 3, 4)
    everything, synchronised = on_ranks(2, lambda rank: cell_by_kernels(call, torch.float32, rank))
    forward = [(2, 2 * norms * 8) for norms in (4, 2, 2, 1)]  # first halves and pools, second halves; of two edges, of one
    assert synchronised[0].sums == forward + [(2 * norms * 8,) for norms in (4, 2, 2, 1)]
    needs, backward = (False, True, False), [(2 * 2 * 8,), (2 * 8,)]  # only the second node's edge from the first
    got, synchronised = on_ranks(2, lambda rank: cell_by_kernels(call, torch.float32, rank, needs))
    assert synchronised[0].sums == forward + backward
    for mine, all_of_it in zip(got, everything, strict=True):
        assert all(torch.equal(mine[name], all_of_it[name]) for name in mine if mine[name].numel())


def test_graph_without_batchnorm_sums_nothing() -> None:
    graph = Graph(1, 1, (Edge(0, 0, 1, (Candidate.SKIP, Candidate.NONE, Candidate.PLAIN_AVG_POOL_3)),))
    call = cells.CellCall(graph, 4, 8, 3, 4)
    _, synchronised = on_ranks(2, lambda rank: cell_by_kernels(call, torch.float32, rank))
    assert synchronised[0].sums == []


# ------------------------------------------------------------------------------------------------- relu_conv_bn


def layer_by_kernels(call: Layer, dtype: torch.dtype, rank: Turns) -> Named:
    named = call.tensors(dtype)
    (x, weights, scale, shift), (running, grad) = call.parts(named), call.constants(dtype)
    x, (mean, var) = share(x, rank), (None, None) if call.training else running
    given = relu_conv_bn.Layer(x, weights, mean, var, scale, shift)
    out, statistics, normalised = relu_conv_bn.forward(given, EPS, rank)
    back = relu_conv_bn_backward.Layer(share(grad, rank), x, weights, normalised, statistics, scale)
    grad_x, *of_parameters = relu_conv_bn_backward.backward(back, EPS, call.training, True, True, rank)
    if call.training:
        batch_norm.update_running(running, statistics, rank.size * out.numel() // out.shape[1], 0.2)
    moved = {"out": out, "mean": running[0], "var": running[1], "d x": grad_x}
    names = [f"d {name}" for name in named if name != "x"]
    return moved | dict(zip(names, (g for grads in of_parameters for g in grads), strict=True))


def layer_by_definition(call: Layer, dtype: torch.dtype, rank: Turns, exact: bool) -> Named:
    named = {n: share(t, rank) if n == "x" else t.detach() for n, t in call.tensors(dtype).items()}
    named = {n: (t.double() if exact else t).requires_grad_() for n, t in named.items()}
    running, grad = call.constants(torch.float64 if exact else dtype)
    affine = (named["scale"], named["shift"]) if call.affine else None
    weights = [t for name, t in named.items() if name[0] == "w"]
    out = layer(named["x"], weights, running, affine, call.training, 0.2, EPS, rank)
    return {"out": out.detach(), "mean": running[0], "var": running[1]} | gradients(out, share(grad, rank), named)


def strided(x: Tensor, weight: Tensor, offset: int = 0) -> Tensor:
    """relu_conv_bn.halving_convolution by a stride of the convolution."""
    return F.conv2d(x[:, :, offset:, offset:], weight, stride=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    ("training", "shift", "size", "affine"),
    [(True, 0.0, 2, False), (True, 1e3, 3, False), (False, 0.0, 2, False), (True, 0.0, 2, True)],
)
def test_relu_conv_bn_matches_definition(
    training: bool, shift: float, size: int, affine: bool, halves: bool, dtype: torch.dtype
) -> None:
    call = Layer(2 * size, 12, 8, 6, 8, halves, training, shift=shift, affine=affine)
    with uninitialised_memory_is_nan():
        got, synchronised = on_ranks(size, lambda rank: layer_by_kernels(call, dtype, rank))
    assert len(synchronised[0].sums) == (2 if training else 0)
    layouts = [replace(call, channels_last=flag) for flag in (False, True)]
    eager = [one.run(one.tensors(dtype), "definition", dtype) for one in layouts]
    with pytest.MonkeyPatch.context() as patch:  # as other codes have it: with 12 channels torch stays within bounds
        patch.setattr(definitions, "halving_convolution", strided)
        eager.append(layouts[1].run(layouts[1].tensors(dtype), "definition", dtype))
    assert_exact(whole(got, by_image), eager, call.run(double(call.tensors(dtype)), "definition", torch.float64), dtype)
    if call.shift:
        return
    want, _ = on_ranks(size, lambda rank: layer_by_definition(call, dtype, rank, True))
    eagers = [on_ranks(size, lambda rank, one=one: layer_by_definition(one, dtype, rank, False))[0] for one in layouts]
    for rank in range(size):
        assert_exact(got[rank], [e[rank] for e in eagers], want[rank], dtype)


@pytest.mark.parametrize("training", [True, False])
def test_layers_run_together_sum_once(training: bool) -> None:
    """Of a cell after a reduction: one layer that halves its input, one that does not. What each has alone, to the bit."""
    calls = Layer(4, 12, 8, 8, 8, True, training), Layer(4, 20, 10, 4, 4, False, training)

    def together(rank: Turns) -> Named:
        named = [call.tensors() for call in calls]
        constants = [call.constants() for call in calls]
        xs, weights = [share(n["x"], rank) for n in named], [[w.detach() for w in list(n.values())[1:]] for n in named]
        given = [(None, None) if training else running for running, _ in constants]
        layers = [relu_conv_bn.Layer(x, w, *g) for x, w, g in zip(xs, weights, given, strict=True)]
        done = relu_conv_bn.forwards(layers, EPS, rank)
        grads = [share(grad, rank) for _, grad in constants]
        layers = [
            relu_conv_bn_backward.Layer(g, x, w, one.normalised, one.statistics)
            for g, x, w, one in zip(grads, xs, weights, done, strict=True)
        ]
        back = relu_conv_bn_backward.backwards(layers, EPS, training, [False, True], True, rank)
        assert [one.x.numel() > 0 for one in back] == [False, True]
        result = {f"out {i}": one.out for i, one in enumerate(done)} | {"d x 1": back[1].x}
        return result | {f"d w{j} {i}": w for i, one in enumerate(back) for j, w in enumerate(one.weights)}

    got, synchronised = on_ranks(2, together)
    assert synchronised[0].sums == ([(2, 2 * 18), (2 * 18,)] if training else [])
    for i, call in enumerate(calls):
        alone, _ = on_ranks(2, lambda rank, call=call: layer_by_kernels(call, torch.float32, rank))
        for mine, want in zip(got, alone, strict=True):
            assert all(torch.equal(t, want[n[:-2]]) for n, t in mine.items() if n.endswith(str(i)))


# ------------------------------------------------------------------------------------------------------ the sums


def test_statistics_match_hand_computation() -> None:
    """Of ranks whose means are far apart, as of all their values at once; the same bits everywhere."""
    x = (
        torch.randn(3, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        + torch.tensor([0, 5, -1e3])[:, None, None]
    )

    def own(rank: Turns) -> Named:
        var, mean = torch.var_mean(x[rank.rank], 0, correction=0)
        return {"mean": ranks.statistics(torch.stack((mean, var)), rank), "var": ranks.mean(mean.float(), rank)}

    got, _ = on_ranks(3, own)
    joined = whole(got, by_image)
    var, mean = torch.var_mean(x.flatten(0, 1), 0, correction=0)
    torch.testing.assert_close(joined["mean"], torch.stack((mean, var)), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(joined["var"], mean.float())

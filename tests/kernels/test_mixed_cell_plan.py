"""Launches of mixed_cell's Triton kernels for a cell: counts, extents, bytes. Needs no Triton."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fastdarts.kernels.graph import Candidate, Graph
from fastdarts.kernels.mixed_cell_launches import FREE, SUMMED, WIDEST, Call, Needs, Split
from fastdarts.kernels.mixed_cell_plan import MixedCellPlan, launch_plan, saved_numbers
from fastdarts.kernels.rows import ALIGN
from fastdarts.ops import mixed_cell
from tests.ops import cells
from tests.ops.cells import EVERY, S0, STRIDED, dense, one_edge

NORMAL, REDUCTION = dense(4), dense(4, 2)
CIFAR = 64, 16, 32, 32
ALPHA = Needs(inputs=True, ops=True, weights=False)


def counts(call: Call, needs: Needs | None = None) -> Counter:
    return Counter(launch.kernel for launch in launch_plan(call, needs))


def test_launches_of_normal_cell() -> None:
    """Four waves: 24 launches forward, 29 backward for the weights of candidates, 34 with those of convolutions."""
    call = Call(NORMAL, CIFAR)
    forward = {"separable": 8, "pool_sums": 4, "bn_scale_shift": 8, "node": 4}
    assert counts(call) == forward and sum(forward.values()) == 24
    alpha = {"pool_gradient": 4, "state_gradient": 5, "grad_sums": 4, "mix_weights": 4, "product": 8, "bn_backward_inner": 4}
    assert counts(call, ALPHA) == alpha and sum(alpha.values()) == 29
    learnt = {"matrix_gradient": 2, "tap_gradient": 2, "reduce_parts": 1}
    assert counts(call, Needs()) == alpha | learnt and sum((alpha | learnt).values()) == 34


def test_launches_of_reduction_cell() -> None:
    """One launch more for FactorizedReduce, in the forward and for its weights."""
    call = Call(REDUCTION, CIFAR)
    assert counts(call) == counts(Call(NORMAL, CIFAR)) + Counter(dense=1)
    assert counts(call, ALPHA) == counts(Call(NORMAL, CIFAR), ALPHA)
    assert counts(call, Needs()) == counts(Call(NORMAL, CIFAR), Needs()) + Counter(dense_gradient=1)


@pytest.mark.parametrize("graph", [NORMAL, REDUCTION])
def test_launches_with_running_statistics_and_random_channels(graph: Graph) -> None:
    """Without batch statistics all scales and shifts are there at once; drawn channels are inverted once in each direction."""
    batch = counts(Call(graph, CIFAR))
    running = counts(Call(graph, CIFAR, batch=False))
    assert running == batch - Counter(pool_sums=4, bn_scale_shift=7)
    assert counts(Call(graph, CIFAR, 4, chosen=True)) == batch + Counter(channel_inverse=1)
    assert counts(Call(graph, CIFAR, 4, chosen=True), Needs()) == counts(Call(graph, CIFAR), Needs()) + Counter(
        channel_inverse=1
    )


@pytest.mark.parametrize("graph", [NORMAL, REDUCTION])
def test_ranks_exchange_eight_times_in_each_direction(graph: Graph) -> None:
    """Each BN once forward; backward each that ends at a node once, and each middle. Else the launches are the same."""
    alone, shared = Call(graph, CIFAR), Call(graph, CIFAR, shared=True)
    assert counts(shared) == counts(alone) + Counter(bn_scale_shift=8) and counts(shared, Needs()) == counts(alone, Needs())
    middles = 14 * 2
    for needs, wanted in (
        (None, range(graph.norms)),
        (Needs(), range(graph.norms - middles)),
        (ALPHA, range(graph.norms - middles)),
    ):
        plan = MixedCellPlan(shared, needs)
        exchanged = {
            kernel: [one.exchanged for one in plan.launches if one.kernel == kernel and one.exchanged]
            for kernel in counts(shared, needs)
        }
        ends = [
            plan.table[i] for kernel in ("bn_scale_shift", "mix_weights") for place in exchanged.get(kernel, []) for i in place
        ]
        assert sum(map(len, exchanged.values())) == 8 and len(ends) == len(set(ends)) == len(wanted)
        slots = [plan.table[i] for place in exchanged.get("bn_backward_inner", []) for i in place]
        assert sorted(slots) == list(range(middles if needs else 0))
    assert not any(one.exchanged for needs in (None, Needs()) for one in launch_plan(alone, needs))


def test_ranks_exchange_only_needed_sums() -> None:
    """Weights of candidates alone: nothing of what reads an input, so one wave less."""
    only_mix = launch_plan(Call(NORMAL, CIFAR, shared=True), Needs(inputs=False, weights=False))
    assert [len(one.exchanged) for one in only_mix if one.exchanged] == [18, 6, 12, 4, 6, 2]
    nothing = Call(one_edge(Candidate.NONE, Candidate.SKIP), CIFAR, shared=True)
    assert not any(one.exchanged for needs in (None, Needs()) for one in launch_plan(nothing, needs))


@pytest.mark.parametrize("nodes", range(1, 7))
def test_launches_grow_with_nodes_not_edges(nodes: int) -> None:
    assert sum(counts(Call(dense(nodes), CIFAR)).values()) == 6 * nodes
    wide = dense(1, inputs=4, candidates=S0)
    assert sum(counts(Call(wide, CIFAR)).values()) == 6


def test_only_requested_gradients_are_launched() -> None:
    call = Call(NORMAL, CIFAR)
    only_mix = counts(call, Needs(inputs=False, weights=False))
    assert only_mix == counts(call, ALPHA) - Counter(pool_gradient=1, state_gradient=1, product=2, bn_backward_inner=1)
    assert counts(Call(NORMAL, CIFAR, batch=False), Needs(ops=False))["grad_sums"] == 0
    nothing = one_edge(Candidate.NONE, Candidate.SKIP)
    assert counts(Call(nothing, CIFAR)) == {"node": 1}
    assert counts(Call(nothing, CIFAR), Needs()) == {"state_gradient": 2, "grad_sums": 1, "mix_weights": 1}


def test_affine_norms_add_a_launch_for_middles() -> None:
    """Per wave, where the gradients of weights are needed; in eval mode their sums, too."""
    affine = Call(NORMAL, CIFAR, affine=True)
    for needs in (None, ALPHA):
        assert counts(affine, needs) == counts(Call(NORMAL, CIFAR), needs)
    assert counts(affine, Needs()) == counts(Call(NORMAL, CIFAR), Needs()) + Counter(affine_gradient=4)
    fixed = Call(NORMAL, CIFAR, batch=False, affine=True)
    assert counts(fixed, Needs(ops=False))["grad_sums"] == 4
    shared = MixedCellPlan(Call(NORMAL, CIFAR, shared=True, affine=True), Needs())
    exchanging = Counter(one.kernel for one in shared.launches if one.exchanged)
    assert exchanging == {"mix_weights": 4, "affine_gradient": 4}


def test_bytes_and_operations_of_normal_cell() -> None:
    """Passes over a tensor of (m, C): units read and write, nodes read each y and state; the convolutions' operations."""
    m, C = 64 * 32 * 32, 16
    forward = launch_plan(Call(NORMAL, CIFAR))
    units, pools, terms, states, written = 14 * 6, 5, 14 * 4, 14, 4 + 3
    assert sum(launch.numbers for launch in forward) == (2 * units + pools + terms + states + written) * m * C
    operations = sum(launch.operations for launch in forward if launch.kernel == "separable")
    assert operations == 14 * 2 * m * C * (2 * (9 + C) + 2 * (25 + C) + (9 + C) + (25 + C))
    assert forward[0].bytes(2) == 2 * forward[0].numbers
    assert all(launch.programs > 0 for launch in forward)


@pytest.mark.parametrize("pixels", [1, 63, 64, 65, 1000, 65536, 802816, 10**7])
@pytest.mark.parametrize("how", [SUMMED, FREE])
def test_parts_cover_all_pixels(pixels: int, how: tuple[int, int]) -> None:
    split = Split.of(pixels, *how)
    assert (split.parts - 1) * split.per < pixels <= split.parts * split.per
    assert split.parts <= how[0] and split.per % how[1] == 0


@pytest.mark.parametrize(("k", "chosen", "affine"), [(1, False, True), (2, True, False)])
@pytest.mark.parametrize("stride", [1, 2])
def test_saved_tensors_do_not_overlap(stride: int, k: int, chosen: bool, affine: bool) -> None:
    """Each y, each state and the factors have room of their own, and backward finds them where forward put them."""
    graph = dense(3, stride, STRIDED if stride == 2 else EVERY)
    shape = (3, 20, 6, 10)
    call = Call(graph, shape, k, chosen, affine=affine)
    plan = MixedCellPlan(call)
    size, state = plan.m * plan.Cq, plan.m * plan.C
    places = [(unit.y * ALIGN, size) for unit in plan.units] + [(at * ALIGN, state) for at in plan.state if at >= 0]
    places = sorted([*places, *((at, 6 * graph.norms * plan.Cq) for at in {plan.norms_at, plan.scaled_at})])
    assert (plan.scaled_at != plan.norms_at) == affine
    ends = [begin + length for begin, length in places]
    assert all(end <= begin for end, (begin, _) in zip(ends, places[1:], strict=False)) and ends[-1] <= plan.saved
    assert plan.saved == saved_numbers(tuple(graph.encode()), shape, k, affine)
    for needs in (Needs(), ALPHA, Needs(False, False, True)):
        back = MixedCellPlan(call, needs)
        assert [unit.y for unit in back.units] == [unit.y for unit in plan.units] and back.state == plan.state
        assert back.saved == plan.saved and back.norms_at == plan.norms_at
    assert plan.numbers == graph.size(plan.Cq)


@pytest.mark.parametrize(("dynamic", "affine"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_kernels_have_gpu_sizes(dtype: torch.dtype, dynamic: bool, affine: bool) -> None:
    """Those of a traced call, too, whose number of images is a symbol."""
    call = cells.CellCall(dense(2, 2), 2, 8, 6, 4, k=2, chosen=True)
    E, K = len(call.graph.edges), call.graph.longest
    mode = FakeTensorMode(shape_env=ShapeEnv())
    images = mode.from_tensor(torch.empty(call.N), static_shapes=not dynamic)
    with mode:
        x = torch.empty(images.shape[0], call.C, call.H, call.W, dtype=dtype, device="cuda")
        mix = x.new_empty(E, K), x.new_empty(E), x.new_empty(call.graph.size(call.C // call.k))
        mix = *mix, x.new_empty(2, call.graph.norms * call.C // call.k) if affine else None
        channels = torch.empty(E, call.C // call.k, dtype=torch.int64, device="cuda")
        inputs = [x.contiguous(memory_format=torch.channels_last)] * 2
        assert isinstance(x.shape[0], torch.SymInt) == dynamic
        given = inputs, *mix, None, None, channels, call.graph.encode(), call.k, 1e-5, 0
        out, statistics, saved = torch.ops.fastdarts.mixed_cell(*given)
    assert out.shape == (2, 16, 3, 2) and out.is_contiguous(memory_format=torch.channels_last)
    assert statistics.shape == (2, call.graph.norms * 4) and statistics.dtype == torch.float64
    assert saved.shape == (saved_numbers(tuple(call.graph.encode()), (2, 8, 6, 4), 2, affine),) and saved.dtype == dtype


def test_too_wide_candidates_are_rejected() -> None:
    graph = one_edge(Candidate.SKIP)
    for C, k, fits in ((WIDEST, 1, True), (2 * WIDEST, 2, True), (2 * WIDEST, 1, False), (3 * WIDEST, 2, False)):
        x = torch.empty(1, C, 2, 2)
        why = mixed_cell._beyond_triton(
            [x], x, None, x, None, mixed_cell.Constants(None, None, graph, k, True, 0.1, 1e-5, None)
        )
        if fits:
            assert why is None and MixedCellPlan(Call(graph, (1, C, 2, 2), k)).Cq == WIDEST
        else:
            assert f"at most {WIDEST} channels per candidate, got {C // k}" in why
            with pytest.raises(ValueError, match="channels per candidate"):
                MixedCellPlan(Call(graph, (1, C, 2, 2), k))

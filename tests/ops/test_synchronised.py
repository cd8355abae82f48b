"""BatchNorm over the images of several ranks, by the C++ kernels: what one rank gives for the whole batch, and how many sums.

Notation: N images of all ranks, C channels of a node, k the divisor of partial channels.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol

import pytest
import torch
from torch import Tensor

from fastdarts.kernels.graph import Candidate
from fastdarts.ops.backend import BackendUnavailable
from fastdarts.ops.conv_bn_chain import conv_bn_chain
from fastdarts.ops.relu_conv_bn import relu_conv_bn, relu_conv_bns
from fastdarts.ops.sync import Sync, handle, ranks_of
from tests.ops import cells
from tests.ops.cells import EVERY, STRIDED, dense, one_edge
from tests.ops.exactness import Named, assert_exact, uninitialised_memory_is_nan
from tests.ops.ranks import Rank, Twins, on_ranks
from tests.support.backends import needs_native

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]
FLOATS = [torch.float32, torch.float64]
Applied = tuple[list[Tensor], list[Tensor]]  # outputs, running statistics after it


class Case(Protocol):
    """An op and its arguments for the whole batch; a tensor whose name begins with "x" is split over the ranks."""

    def tensors(self, dtype: torch.dtype) -> Named: ...

    def apply(self, named: Named, dtype: torch.dtype, backend: str, sync: Sync | None) -> Applied: ...


@dataclass(frozen=True)
class Cell:
    call: cells.CellCall

    def tensors(self, dtype: torch.dtype) -> Named:
        return {name.replace("input ", "x"): t for name, t in self.call.tensors(dtype).items()}

    def apply(self, named: Named, dtype: torch.dtype, backend: str, sync: Sync | None) -> Applied:
        rest = self.call.constants(dtype)
        running = None if rest["mean"] is None else (rest["mean"], rest["var"])
        inputs = {name.replace("x", "input "): t for name, t in named.items()}
        return [self.call.forward(inputs, running, rest["channels"], backend, sync)], list(running or [])


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def buffers(D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.full((D,), 0.5, dtype=dtype), torch.full((D,), 2.0, dtype=dtype)


@dataclass(frozen=True)
class Preprocess:
    """A cell's two layers: the first one halves, or not."""

    halves: bool = True
    N: int = 6
    C: int = 12
    D: int = 8
    H: int = 6
    W: int = 10
    training: bool = True

    def tensors(self, dtype: torch.dtype) -> Named:
        g, s = torch.Generator().manual_seed(self.C), 1 + self.halves
        named = {
            "x0": normal(g, self.N, self.C, s * self.H, s * self.W) + 3,
            "x1": normal(g, self.N, self.C + 4, self.H, self.W),
            "weight": normal(g, self.D, self.C + 4, 1, 1),
        }
        named |= {f"weight0{i}": normal(g, self.D // s, self.C, 1, 1) for i in range(s)}
        return {name: t.to(dtype).requires_grad_() for name, t in named.items()}

    def apply(self, named: Named, dtype: torch.dtype, backend: str, sync: Sync | None) -> Applied:
        running = [buffers(self.D, dtype), buffers(self.D, dtype)]
        xs, weights = [named["x0"], named["x1"]], [[named[f"weight0{i}"] for i in range(1 + self.halves)], [named["weight"]]]
        outs = relu_conv_bns(xs, weights, running, training=self.training, backend=backend, sync=sync)
        return list(outs), list(chain(*running))


@dataclass(frozen=True)
class Stem:
    N: int = 4
    D: tuple[int, ...] = (6, 8, 8)
    strides: tuple[int, ...] = (2, 1, 2)
    outputs: int = 2
    training: bool = True

    def tensors(self, dtype: torch.dtype) -> Named:
        g, C = torch.Generator().manual_seed(0), 3
        named = {"x": normal(g, self.N, C, 10, 14) + 1}
        for i, D in enumerate(self.D):
            named |= {f"weight{i}": normal(g, D, C, 3, 3), f"scale{i}": normal(g, D), f"shift{i}": normal(g, D)}
            C = D
        return {name: t.to(dtype).requires_grad_() for name, t in named.items()}

    def apply(self, named: Named, dtype: torch.dtype, backend: str, sync: Sync | None) -> Applied:
        layers, running = range(len(self.D)), [buffers(D, dtype) for D in self.D]
        outs = conv_bn_chain(
            named["x"],
            [named[f"weight{i}"] for i in layers],
            [(named[f"scale{i}"], named[f"shift{i}"]) for i in layers],
            running,
            strides=self.strides,
            outputs=self.outputs,
            training=self.training,
            backend=backend,
            sync=sync,
        )
        return list(outs), list(chain(*running))


def part(t: Tensor, sync: Sync | None) -> Tensor:
    """A rank's images."""
    return t if sync is None else t.chunk(sync.size)[sync.rank]


def run(
    case: Case, backend: str, dtype: torch.dtype, sync: Sync | None, values: torch.dtype, layout: torch.memory_format
) -> Named:
    """Outputs, running statistics and all gradients, of the rank's images or of all; `values`: what tensors are rounded to."""
    named = {}
    for name, t in case.tensors(values).items():
        own = part(t.detach(), sync) if name.startswith("x") else t.detach()
        laid_out = own.contiguous(memory_format=layout) if name.startswith("x") else own.clone()
        named[name] = laid_out.to(dtype).requires_grad_()
    outs, running = case.apply(named, dtype, backend, sync)
    size, g = 1 if sync is None else sync.size, torch.Generator().manual_seed(1)
    by = [part(normal(g, size * o.shape[0], *o.shape[1:]).to(values), sync).to(dtype) for o in outs]
    grads = torch.autograd.grad(outs, list(named.values()), by, allow_unused=True, materialize_grads=True)
    result = {f"out {i}": o.detach() for i, o in enumerate(outs)} | {f"running {i}": t for i, t in enumerate(running)}
    return result | {f"d {name}": grad for name, grad in zip(named, grads, strict=True)}


def together(ranks: list[Named]) -> Named:
    """The whole batch's: images one after the other, gradients of what all share summed, statistics bit by bit the same."""
    whole = {}
    for name, first in ranks[0].items():
        each = [rank[name] for rank in ranks]
        if name.startswith("running"):
            assert all(torch.equal(t, first) for t in each), name
            whole[name] = first
        else:
            whole[name] = torch.cat(each) if name.startswith(("out", "d x")) else torch.stack(each).sum(0)
    return whole


def check(case: Case, dtype: torch.dtype, size: int = 2) -> None:
    """As exact as eager on the whole batch; in float64 also what each rank gets by itself from the definition."""
    layout = torch.channels_last

    def on_rank(backend: str, sync: Rank) -> Named:
        return run(case, backend, dtype, sync, dtype, layout)

    with uninitialised_memory_is_nan():
        got = on_ranks(partial(on_rank, "cpu"), size)
    whole = partial(run, case, "definition", sync=None, values=dtype)
    if dtype == torch.float64:
        assert_exact(together(got), [], whole(dtype=dtype, layout=layout), dtype)
        for mine, definition in zip(got, on_ranks(partial(on_rank, "definition"), size), strict=True):
            assert_exact(mine, [], definition, dtype)
        return
    eager = [whole(dtype=dtype, layout=each) for each in (torch.channels_last, torch.contiguous_format)]
    assert_exact(together(got), eager, whole(dtype=torch.float64, layout=layout), dtype)


# --------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "call",
    [
        cells.CellCall(dense(4), 4, 8, 6, 8),
        cells.CellCall(dense(4, 2), 4, 8, 8, 12),
        cells.CellCall(dense(2, candidates=EVERY, inputs=1), 6, 48, 4, 6, edges=False),
        cells.CellCall(dense(3), 6, 16, 8, 6, k=2),
        cells.CellCall(dense(3, 2, STRIDED), 4, 16, 8, 8, k=4, running=False),
        cells.CellCall(dense(3), 10, 8, 6, 6, k=2, chosen=True),  # an odd number of images a rank, several to a vector
        cells.CellCall(dense(2, 2), 4, 16, 8, 8, k=4, chosen=True),
        cells.CellCall(dense(2), 4, 16, 16, 12, images="masked"),
    ],
    ids=str,
)
def test_cell_matches_single_process(call: cells.CellCall, dtype: torch.dtype) -> None:
    check(Cell(call), dtype)


@pytest.mark.parametrize("stride", [1, 2])
def test_means_far_from_zero(stride: int) -> None:
    """A thousand times the standard deviation: each rank's pivots are its own."""
    check(Cell(cells.CellCall(dense(2, stride), 4, 16, 16, 12, images="shifted")), torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", [Preprocess(), Preprocess(halves=False), Preprocess(C=5, D=6, H=3, W=5), Stem()], ids=str)
def test_layers_match_single_process(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("case", [Cell(cells.CellCall(dense(2, 2), 6, 8, 6, 8, k=2)), Preprocess(), Stem(N=6)], ids=str)
def test_three_ranks_with_each_instruction_set(isa: str, case: Case) -> None:
    check(case, torch.float64, size=3)


@pytest.mark.parametrize("candidate", STRIDED)
def test_each_candidate_matches_single_process(candidate: Candidate) -> None:
    for stride, k in ((1, 2), (2, 1)):
        check(Cell(cells.CellCall(dense(3, stride, (candidate,)), 4, 8, 6, 8, k=k)), torch.float64)


@pytest.mark.parametrize("case", [Cell(cells.CellCall(dense(3, 2), 10, 16, 8, 12, k=2)), Preprocess(N=10), Stem(N=10)], ids=str)
def test_bitwise_identical_for_any_number_of_threads(case: Case) -> None:
    work = partial(run, case, "cpu", torch.float32, values=torch.float32, layout=torch.channels_last)
    first, *others = (on_ranks(lambda sync: work(sync=sync), intra_op=n) for n in (1, 1, 2))
    for ranks in others:
        for mine, theirs in zip(ranks, first, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---------------------------------------------------------------------------------------------- how many sums


def sums(case: Case, backend: str = "auto") -> tuple[int, int]:
    """How many sums over the ranks there are, forward and backward."""
    sync = Twins()
    named = case.tensors(torch.float32)
    outs, _ = case.apply(named, torch.float32, backend, sync)
    forward = sync.sums
    torch.autograd.grad(sum(o.sum() for o in outs), list(named.values()), allow_unused=True)
    return forward, sync.sums - forward


DILATED = Candidate.NONE, Candidate.SKIP, Candidate.DIL_CONV_3, Candidate.MAX_POOL_3


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        (Cell(cells.CellCall(dense(4), 2, 4, 6, 6)), 8, 8),  # S0's cells: for the inputs and for each node that is read, two
        (Cell(cells.CellCall(dense(4, 2), 2, 4, 8, 8)), 8, 8),
        (Cell(cells.CellCall(dense(4, 2), 2, 8, 8, 8, k=2, chosen=True)), 8, 8),
        (Cell(cells.CellCall(dense(4, candidates=DILATED), 2, 4, 6, 6)), 4, 4),  # no second halves
        (Cell(cells.CellCall(dense(4, candidates=(Candidate.NONE, Candidate.SKIP)), 2, 4, 6, 6)), 0, 0),
        (Cell(cells.CellCall(dense(4), 2, 4, 6, 6, training=False)), 0, 0),
        (Cell(cells.CellCall(dense(4), 2, 4, 6, 6, training=False, running=False)), 8, 8),  # the batch's all the same
        (Preprocess(), 1, 1),
        (Preprocess(halves=False), 1, 1),
        (Preprocess(training=False), 0, 0),
        (Stem(), 3, 3),
        (Stem(training=False), 0, 0),
    ],
    ids=str,
)
def test_number_of_sums_over_ranks(case: Case, forward: int, backward: int) -> None:
    """By the C++ kernels, which "auto" chooses."""
    assert sums(case) == (forward, backward)


def test_definition_sums_once_per_norm() -> None:
    call = cells.CellCall(dense(4), 2, 4, 6, 6)
    assert sums(Cell(call), "definition") == (call.graph.norms, call.graph.norms)


def test_unrequested_gradients_do_not_change_others() -> None:
    """Only alpha's gradient, or only the weights': the same bits, from as many sums."""
    call = cells.CellCall(dense(4), 2, 4, 6, 6)
    named, rest = call.tensors(), call.constants()
    results, counts = [], []
    for wanted in (list(named), ["ops", "edges"], ["weights"]):
        sync = Twins()
        given = {name: t.detach().requires_grad_(name in wanted) for name, t in named.items()}
        out = call.forward(given, (rest["mean"], rest["var"]), None, "cpu", sync)
        grads = torch.autograd.grad(out, [given[name] for name in wanted], rest["grad"])
        results.append(dict(zip(wanted, grads, strict=True)))
        counts.append(sync.sums)
    assert all(torch.equal(t, results[0][name]) for some in results for name, t in some.items())
    assert counts == [16, 15, 16]  # the convolutions on the way from the inputs to the first node are no part of alpha's


# ------------------------------------------------------------------------------------------- second derivatives


@pytest.mark.parametrize("case", [Cell(cells.CellCall(dense(2, 2, inputs=1), 4, 4, 6, 4)), Preprocess(), Stem()], ids=str)
def test_second_derivative_matches_definition(case: Case) -> None:
    def twice(backend: str, sync: Rank) -> Named:
        named = {n: part(t.detach(), sync) if n.startswith("x") else t.detach() for n, t in case.tensors(torch.float64).items()}
        named = {n: t.clone().requires_grad_() for n, t in named.items()}
        outs, _ = case.apply(named, torch.float64, backend, sync)
        once = torch.autograd.grad(sum(o.pow(3).sum() for o in outs), list(named.values()), create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in once), list(named.values()))
        return {str(i): t.detach() for i, t in enumerate([*once, *again])}

    for got, want in zip(on_ranks(partial(twice, "cpu")), on_ranks(partial(twice, "definition")), strict=True):
        assert_exact(got, [], want, torch.float64)


# ------------------------------------------------------------------------------------ what goes wrong, registration


class Lost(RuntimeError):
    """As engine's, when a rank is gone."""


@dataclass
class Late:
    """Twins, until `after` sums have been."""

    after: int
    error: BaseException
    twins: Twins = field(default_factory=Twins)
    rank: int = 0
    size: int = 2

    def sum(self, flat: Tensor) -> None:
        if self.twins.sums == self.after:
            raise self.error
        self.twins.sum(flat)


@pytest.mark.parametrize("error", [Lost("rank 1 is gone"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("case", [Cell(cells.CellCall(dense(4, 2), 3, 8, 8, 8, k=2)), Preprocess(), Stem()], ids=str)
def test_error_in_sum_propagates_and_op_stays_usable(case: Case, error: BaseException) -> None:
    work = partial(run, case, "cpu", torch.float32, values=torch.float32, layout=torch.channels_last)
    want = work(sync=Twins())
    forward, backward = sums(case)
    with uninitialised_memory_is_nan():
        for after in {0, forward - 1, forward, forward + backward - 1}:
            with pytest.raises(type(error)) as raised:
                work(sync=Late(after, error))
            assert raised.value is error
            again = work(sync=Twins())
            assert all(torch.equal(again[name], t) for name, t in want.items())


def test_handle_is_valid_while_ranks_live() -> None:
    assert handle(None) == 0 and ranks_of(0) is None
    sync = Twins()
    number = handle(sync)
    assert number == handle(sync) != 0 and ranks_of(number) is sync
    x = torch.ones(2, 4, 4, 4).contiguous(memory_format=torch.channels_last)
    args = [x], [torch.ones(4, 4, 1, 1)], [1], [], [], [], [], 1e-5
    torch.ops.fastdarts.relu_conv_bn(*args, number)
    del sync
    with pytest.raises(ValueError, match="is not a handle of process groups"):
        torch.ops.fastdarts.relu_conv_bn(*args, number)


def test_opcheck() -> None:
    sync = Twins()
    call = cells.CellCall(one_edge(*STRIDED), 2, 4, 6, 4)
    named = {name: t.detach() for name, t in call.tensors().items()}
    x = named["input 0"].contiguous(memory_format=torch.channels_last)
    mix, rest = (named["ops"], named["edges"], named["weights"], None), (None, call.graph.encode(), 1, 1e-5)
    args = [x], *mix, None, None, *rest, handle(sync)
    torch.library.opcheck(torch.ops.fastdarts.mixed_cell.default, args)
    out, statistics, saved = torch.ops.fastdarts.mixed_cell(*args)
    args = out, [x], *mix, statistics, saved, *rest, True, True, True, True, handle(sync)
    torch.library.opcheck(torch.ops.fastdarts.mixed_cell_backward.default, args)
    w = [torch.ones(2, 4, 1, 1)]
    args = [x, x], [*w, *w], [1, 1], [], [], [], [], 1e-5, handle(sync)
    torch.library.opcheck(torch.ops.fastdarts.relu_conv_bn.default, args)
    outs, _, statistics = torch.ops.fastdarts.relu_conv_bn(*args)
    for needs in ([True, True], [False, True]):
        args = outs, [x, x], [*w, *w], [1, 1], [], outs, statistics, 1e-5, True, needs, True, handle(sync)
        torch.library.opcheck(torch.ops.fastdarts.relu_conv_bn_backward.default, args)
    assert sync.sums


def test_mismatched_layers_are_rejected() -> None:
    x, w, running = torch.ones(2, 4, 4, 4), torch.ones(4, 4, 1, 1), buffers(4, torch.float32)
    for xs, weights, message in (
        ([x] * 3, [[w]] * 3, "one or two layers"),
        ([x, x], [[w]], "got 2 inputs, 1 lists"),
        ([], [], "one or two layers"),
        ([x, x], [[w], [w, w]], "must agree in images and pixels"),
        ([x, x[:1]], [[w], [w]], "must agree in images"),
        ([x, x.double()], [[w], [w.double()]], "the second input must be float32"),
    ):
        with pytest.raises(ValueError, match=message):
            relu_conv_bns(xs, weights, None, training=True)
    with pytest.raises(ValueError, match="one or two layers"):
        relu_conv_bns([x, x], [[w], [w]], [running], training=True)


@pytest.mark.parametrize("backend", ["cpu", "definition"])
def test_layers_run_together_are_bitwise_identical(backend: str) -> None:
    """Where nothing is summed: the same bits."""
    case = Preprocess()
    named = case.tensors(torch.float32)
    (first, second), _ = case.apply(named, torch.float32, backend, None)
    one = relu_conv_bn(
        named["x0"], [named["weight00"], named["weight01"]], buffers(8, torch.float32), training=True, backend=backend
    )
    other = relu_conv_bn(named["x1"], [named["weight"]], buffers(8, torch.float32), training=True, backend=backend)
    assert torch.equal(first, one) and torch.equal(second, other)
    by = torch.ones_like(one)
    both, each = (torch.autograd.grad(outs, list(named.values()), [by, by]) for outs in ([first, second], [one, other]))
    assert all(torch.equal(a, b) for a, b in zip(both, each, strict=True))


def test_unsupported_backend_gives_reason() -> None:
    x, w = torch.ones(2, 4, 4, 4), torch.ones(4, 4, 1, 1)
    with pytest.raises(BackendUnavailable, match="triton"):
        relu_conv_bn(x, [w], None, training=True, backend="triton", sync=Twins())

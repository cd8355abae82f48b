"""Cases of a cell that are small enough to be worked out by hand: edges, nodes, strides, its parameters.

The candidates and the channels are in tests/ops/test_mixed_cell_by_hand.py.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from fastdarts.ops.mixed_cell import mixed_cell
from fastdarts.spaces import S0, Space
from fastdarts.supernet import CellWeights, MixedEdges, Supernet, SupernetCell
from fastdarts.supernet.preprocess import FactorizedReduce, ReLUConvBN
from tests.ops.test_mixed_cell_by_hand import COUNT, flat, tensor
from tests.support.backends import BACKENDS
from tests.support.naive import S0 as NAMES
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")
SKIPS = Space.uniform("skips", ("none", "skip_connect"))
PRIMES = [1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41]
# with s0 = 1 and s1 = 10: 1 + 20; 3 + 50 + 7*21; 11 + 130 + 17*21 + 19*200; 23 + 290 + 31*21 + 37*200 + 41*4298
NODES = (21, 200, 4298, 184582)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def transparent(module: nn.Module) -> None:
    """Every batch norm passes its input on: running mean 0, running variance 1 - eps, eval mode."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d | MixedEdges):
            m.running_var.fill_(1 - 1e-5)
    module.eval()


def skip_cell(backend: str, kind: str = "normal", C: int = 2, k: int = 1) -> SupernetCell:
    """A cell whose preprocess layers pass positive inputs on."""
    cell = SupernetCell(SKIPS, kind, C, C, C, reduction_prev=False, partial_channels=k, backend=backend).double()
    transparent(cell)
    with torch.no_grad():
        for layer in (cell.preprocess0, cell.preprocess1):
            layer.op[1].weight.copy_(torch.eye(C)[:, :, None, None])
    return cell


@pytest.mark.parametrize("by", ["ops", "edges", "both"])
def test_order_of_edges_and_nodes(by: str, backend: str) -> None:
    """Edge e's weight is the e-th prime: only the offsets 0, 2, 5, 9 give these sums."""
    primes, ones = tensor(PRIMES), torch.ones(14, dtype=torch.float64)
    on = {"ops": (primes, None), "edges": (ones, primes), "both": (2 * primes, ones / 2)}[by]
    ops = torch.stack([9 * ones, on[0]], dim=1)
    out = skip_cell(backend)(flat(1, 2), flat(10, 20), CellWeights(ops, on[1]))
    assert_close(out, flat(*(c * n for n in NODES for c in (1, 2))))


@pytest.mark.parametrize(
    ("edge", "node", "state"),
    [
        *[(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 1, 2), (5, 2, 0), (6, 2, 1), (7, 2, 2), (8, 2, 3)],
        *[(9, 3, 0), (10, 3, 1), (11, 3, 2), (12, 3, 3), (13, 3, 4)],
    ],
)
def test_single_edge_reads_its_state(edge: int, node: int, state: int, backend: str) -> None:
    """The only edge into its node carries that state and no other (the states before it are fed by their first edges)."""
    weights = torch.zeros(14, dtype=torch.float64)
    for first, value in ((0, 3), (2, 4), (5, 5)):  # nodes 0, 1, 2 = 3, 4, 5 times s0
        weights[first] = value
    weights[[[0, 1], [2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13]][node]] = 0
    weights[edge] = 100
    ops = torch.stack([torch.zeros_like(weights), weights], dim=1)
    out = skip_cell(backend)(flat(1, 1), flat(7, 7), CellWeights(ops))
    states = [1, 7, 3, 4, 5]
    assert (node + 2) > state
    assert_close(out[:, 2 * node : 2 * node + 2], flat(*[100 * states[state]] * 2))


def test_beta_scales_bypass(backend: str) -> None:
    ones = torch.ones(14, dtype=torch.float64)
    ops = torch.stack([ones, 0 * ones], dim=1)  # nothing but the bypass
    cell = skip_cell(backend, C=4, k=2)
    out = cell(flat(1, 2, 3, 4), flat(10, 20, 30, 40), CellWeights(ops, tensor(PRIMES)))
    assert_close(out[:, :4], flat(0, 63, 0, 84))  # node 0: 1 * (3, 4) + 2 * (30, 40) between the processed zeros


@pytest.mark.parametrize(
    ("kind", "strided"), [("normal", set()), ("reduce", {0, 1, 2, 3, 5, 6, 9, 10})], ids=["normal", "reduce"]
)
def test_strided_edges(kind: str, strided: set[int], backend: str) -> None:
    cell = SupernetCell(S0, kind, 4, 4, 4, reduction_prev=False, backend=backend).double()
    assert {e for e, edge in enumerate(cell._ops.graph.edges) if edge.stride == 2} == strided
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    out = cell(x, x, CellWeights(torch.rand(14, 8, dtype=torch.float64)))
    assert out.shape == ((2, 16, 4, 4) if strided else (2, 16, 8, 8))


def test_older_input_is_halved_after_reduction(backend: str) -> None:
    """preprocess0 reads the even pixels for its first half of channels and the odd ones for the second."""
    cell = SupernetCell(SKIPS, "normal", 1, 2, 2, reduction_prev=True, backend=backend).double()
    transparent(cell)
    with torch.no_grad():
        cell.preprocess0.conv_1.weight.fill_(1)
        cell.preprocess0.conv_2.weight.fill_(10)
    weights = torch.zeros(14, 2, dtype=torch.float64)
    weights[0, 1] = 1
    out = cell(COUNT, torch.zeros(1, 2, 2, 2, dtype=torch.float64), CellWeights(weights))
    want = torch.zeros(1, 8, 2, 2, dtype=torch.float64)
    want[0, :2] = tensor([[[0, 2], [8, 10]], [[50, 70], [130, 150]]])
    assert_close(out, want)


def test_output_may_be_modified_in_place(backend: str) -> None:
    """Callers modify it in place (drop-path, auxiliary skips): the gradients stay right."""
    cell = SupernetCell(S0, "normal", 4, 4, 4, reduction_prev=False, backend=backend).double()
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = CellWeights(torch.rand(14, 8, dtype=torch.float64))
    (want,) = torch.autograd.grad((3 * cell(x, x, weights)).sum(), x)
    out = cell(x, x, weights)
    out *= 3
    (got,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_compiles_without_graph_break(kind: str, backend: str) -> None:
    space = Space.uniform("one node", S0.normal[0], nodes=1)
    cell = SupernetCell(space, kind, 4, 4, 4, reduction_prev=True, partial_channels=2, backend=backend).double()
    s0, s1 = (torch.randn(2, 4, side, side, dtype=torch.float64) for side in (8, 4))
    weights = CellWeights(torch.rand(2, 8, dtype=torch.float64, requires_grad=True))
    want = cell(s0, s1, weights)
    state = {name: t.clone() for name, t in cell.state_dict().items()}
    cell.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    got = cell(s0, s1, weights)
    assert_close(got, want)
    grads = [torch.autograd.grad(out.square().sum(), weights.ops)[0] for out in (got, want)]
    assert_close(*grads)
    counts = {int(t - state[n]) for n, t in cell.state_dict().items() if n.endswith("num_batches_tracked")}
    assert counts == {1}


# --------------------------------------------------------------------------------------------------- parameters


def torchs_own(name: str, C: int, stride: int) -> list[nn.Conv2d]:
    """The convolutions of a candidate as DARTS' code builds them, in its order."""
    if name == "skip_connect" and stride == 2:
        return [nn.Conv2d(C, C // 2, 1, stride=2, bias=False) for _ in range(2)]
    if "conv" not in name:
        return []
    size = int(name[-1])
    made = []
    for _ in range(2 if name.startswith("sep") else 1):
        made += [nn.Conv2d(C, C, size, groups=C, bias=False), nn.Conv2d(C, C, 1, bias=False)]
    return made


@pytest.mark.parametrize(("k", "stem"), [(1, "cifar"), (2, "imagenet")])
def test_initial_weights_match_torch(k: int, stem: str) -> None:
    """Bit for bit those of convolutions built one after the other: stem, then of each cell the preprocess layers first."""
    torch.manual_seed(3)
    supernet = Supernet(S0, C=8, layers=4, stem=stem, partial_channels=k)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    wide, C = 24, 8
    sizes = [(3, wide)] if stem == "cifar" else [(3, wide // 2), (wide // 2, wide), (wide, wide)]
    made = [nn.Conv2d(*size, 3, bias=False) for size in sizes]
    before, last, halves = wide, wide, stem == "imagenet"
    for i in range(4):
        reduces = i in (1, 2)
        C *= 1 + reduces
        made += (
            [nn.Conv2d(before, C // 2, 1, bias=False) for _ in range(2)] if halves else [nn.Conv2d(before, C, 1, bias=False)]
        )
        made.append(nn.Conv2d(last, C, 1, bias=False))
        for node in range(4):
            for state in range(node + 2):
                for name in NAMES:
                    made += torchs_own(name, C // k, 2 if reduces and state < 2 else 1)
        before, last, halves = last, 4 * C, reduces
    assert torch.equal(torch.get_rng_state(), after)
    got = [t for n, t in supernet.state_dict().items() if n.endswith("weight") and t.dim() == 4]
    assert sum(t.numel() for t in got) == sum(c.weight.numel() for c in made)
    assert all(torch.equal(t.flatten(), c.weight.flatten()) for t, c in zip(got, made, strict=True))


def test_cell_parameters_are_packed() -> None:
    cell = SupernetCell(S0, "reduce", 8, 8, 8, reduction_prev=True)
    assert [name for name, _ in cell.named_parameters()] == [
        "preprocess0.conv_1.weight",
        "preprocess0.conv_2.weight",
        "preprocess1.op.1.weight",
        "_ops.weights",
    ]
    assert cell._ops.weights.numel() == sum(map(math.prod, cell._ops.graph.convolutions(8)))


def test_unpacked_views_have_names() -> None:
    """`unpacked` returns views, also of a gradient, with the same layout."""
    edges = MixedEdges(S0, "reduce", 4)
    views = edges.unpacked(edges.weights.detach())
    assert views["0._ops.3.conv_2.weight"].shape == (2, 4, 1, 1)
    assert views["13._ops.5.op.5.weight"].shape == (4, 1, 5, 5)
    views["2._ops.6.op.2.weight"].fill_(7)
    assert (edges.weights == 7).sum() == 16
    assert torch.equal(edges.state_dict()["2._ops.6.op.2.weight"], torch.full((4, 4, 1, 1), 7.0))


def test_modules_match_ops(backend: str) -> None:
    """The modules add names, buffers and counters; what they compute is ops.mixed_cell and ops.relu_conv_bn."""
    torch.manual_seed(0)
    edges = MixedEdges(S0, "normal", 4, backend=backend).double()
    x = [torch.randn(2, 4, 6, 6, dtype=torch.float64) for _ in range(2)]
    ops = torch.rand(14, 8, dtype=torch.float64)
    want = mixed_cell(x, ops, None, edges.weights, None, None, graph=edges.graph, training=True, backend=backend)
    assert torch.equal(edges(x, ops, None), want)
    assert edges.num_batches_tracked == 1
    edges.eval()(x, ops, None)
    assert edges.num_batches_tracked == 1


@pytest.mark.parametrize("module", [FactorizedReduce(4, 6), ReLUConvBN(4, 6)], ids=lambda m: type(m).__name__)
def test_preprocess_layers_count_forwards(module: nn.Module) -> None:
    bn = module.bn if isinstance(module, FactorizedReduce) else module.op[2]
    for training in (True, False, True):
        module.train(training)(torch.randn(2, 4, 6, 6))
    assert bn.num_batches_tracked == 2


def test_odd_channel_count_is_rejected() -> None:
    with pytest.raises(ValueError, match="FactorizedReduce halves its output channels between two convolutions: 3 is odd"):
        FactorizedReduce(4, 3)


def test_bfloat16_uses_definition() -> None:
    cell = SupernetCell(S0, "normal", 4, 4, 4, reduction_prev=False).bfloat16()
    x: Tensor = torch.randn(2, 4, 4, 4, dtype=torch.bfloat16)
    out = cell(x, x, CellWeights(torch.rand(14, 8, dtype=torch.bfloat16)))
    assert out.dtype == torch.bfloat16

"""Cases small enough to be worked out by hand: channels, bypass, edges, strides, and each candidate on a few pixels."""

import pytest
import torch
from torch import Tensor, nn

from fastdarts.spaces import S0, Space
from fastdarts.supernet import Cell, CellWeights, MixedOp, channel_shuffle
from tests.naive import S0 as NAMES
from tests.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def flat(*values: float, side: int = 2) -> Tensor:
    """One image whose c-th channel is values[c] everywhere: (1, C, side, side)."""
    return tensor(list(values)).reshape(1, -1, 1, 1).expand(1, len(values), side, side).clone()


def picture(rows: list[list[float]]) -> Tensor:
    """One image of one channel."""
    return tensor(rows)[None, None]


COUNT = picture([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]])


def one_hot(name: str, value: float = 1.0) -> Tensor:
    weights = torch.zeros(8, dtype=torch.float64)
    weights[NAMES.index(name)] = value
    return weights


def transparent(module: nn.Module) -> None:
    """Every batch norm passes its input on: running mean 0, running variance 1 - eps, eval mode."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_var.fill_(1 - m.eps)
    module.eval()


def mixed(C: int, stride: int, names: tuple[str, ...], k: int = 1) -> MixedOp:
    return MixedOp(C, stride, names, k).double()


# ---------------------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize(
    ("k", "order"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, [0, 4, 1, 5, 2, 6, 3, 7]),
        (4, [0, 2, 4, 6, 1, 3, 5, 7]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_shuffle(k: int, order: list[int]) -> None:
    assert torch.equal(channel_shuffle(flat(*range(8)), k), flat(*order))


def test_first_channels_are_processed_and_the_rest_interleaved() -> None:
    op = mixed(4, 1, ("none", "skip_connect"), k=2)
    out = op(flat(1, 10, 100, 1000), tensor([5, 3]))
    assert torch.equal(out, flat(3, 100, 30, 1000))  # [3, 30 | 100, 1000], shuffled


def test_a_quarter_of_the_channels() -> None:
    op = mixed(8, 1, ("skip_connect",), k=4)
    out = op(flat(1, 2, 3, 4, 5, 6, 7, 8), tensor([-1]))
    assert torch.equal(out, flat(-1, 3, 5, 7, -2, 4, 6, 8))


def test_chosen_channels_keep_their_places() -> None:
    op = mixed(4, 1, ("none", "skip_connect"), k=2)
    out = op(flat(1, 10, 100, 1000), tensor([5, 3]), torch.tensor([1, 2]))
    assert torch.equal(out, flat(1, 30, 300, 1000))


@pytest.mark.parametrize("chosen", [None, torch.tensor([0, 1])])
def test_bypass_is_max_pooled_where_the_edge_strides(chosen: Tensor | None) -> None:
    x = torch.cat([COUNT, COUNT, COUNT, -COUNT], dim=1)
    out = mixed(4, 2, ("none",), k=2)(x, tensor([1]), chosen)
    up, down, zero = [[5, 7], [13, 15]], [[-0.0, -2], [-8, -10]], [[0, 0], [0, 0]]
    order = [zero, up, zero, down] if chosen is None else [zero, zero, up, down]
    assert torch.equal(out, tensor(order)[None])


def test_equal_pixels_in_the_bypass_the_first_gets_the_gradient() -> None:
    x = flat(7, 7, side=4).requires_grad_()
    mixed(2, 2, ("none",), k=2)(x, tensor([1])).sum().backward()
    first = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(x.grad, tensor([[[[0.0] * 4] * 4, first]]))


# -------------------------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize(("stride", "side"), [(1, 4), (2, 2)])
def test_none(stride: int, side: int) -> None:
    x = (COUNT + 1).requires_grad_()
    weight = tensor([4]).requires_grad_()
    out = mixed(1, stride, ("none",))(x, weight)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(1, 1, side, side, dtype=torch.float64))
    assert weight.grad.item() == 0
    assert x.grad.count_nonzero() == 0


def test_skip_is_the_input_itself() -> None:
    x = -COUNT
    assert torch.equal(mixed(1, 1, NAMES)(x, one_hot("skip_connect")), x)  # no ReLU, no batch norm


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("name", "pooled"),
    [("max_pool_3x3", [[-15, -13], [-7, -5]]), ("avg_pool_3x3", [[-17.5, -16], [-11.5, -10]])],
)
def test_pools_of_negative_pixels(name: str, pooled: list[list[float]], train: bool) -> None:
    """COUNT - 20 under stride 2: padding neither wins a maximum nor counts in a mean; then a batch norm of its own."""
    op = mixed(1, 2, (name,))
    y = picture(pooled)
    if train:
        spread = y - (-10 if name == "max_pool_3x3" else -13.75)
        want = spread / (spread.square().mean() + 1e-5).sqrt()
        assert spread.sum() == 0
    else:
        transparent(op)
        want = y
    assert_close(op(COUNT - 20, tensor([1])), want)


def test_max_pool_at_stride_one() -> None:
    op = mixed(1, 1, ("max_pool_3x3",))
    transparent(op)
    want = [[5, 6, 7, 7], [9, 10, 11, 11], [13, 14, 15, 15], [13, 14, 15, 15]]
    assert_close(op(COUNT, tensor([2])), 2 * picture(want))


def test_strided_skip_sees_every_other_pixel_and_the_one_beside_it() -> None:
    op = mixed(2, 2, ("skip_connect",))
    transparent(op)
    skip = op._ops[0]
    with torch.no_grad():
        skip.conv_1.weight.copy_(tensor([1, 0]).reshape(1, 2, 1, 1))  # reads channel 0
        skip.conv_2.weight.copy_(tensor([0, 1]).reshape(1, 2, 1, 1))  # reads channel 1
    x = torch.cat([COUNT - 8, 100 * COUNT], dim=1)
    want = tensor([[[0, 0], [0, 2]], [[500, 700], [1300, 1500]]])[None]  # ReLU first; shifted by one pixel each way
    assert_close(op(x, tensor([1])), want)


def shift(conv: nn.Conv2d, dy: int, dx: int) -> None:
    """A depthwise kernel that is zero except for a one at row dy, column dx."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, 0, dy, dx] = 1


def swap(conv: nn.Conv2d) -> None:
    """A 1x1 convolution that swaps its two channels."""
    with torch.no_grad():
        conv.weight.copy_(tensor([[0, 1], [1, 0]])[:, :, None, None])


@pytest.mark.parametrize(("name", "reach"), [("dil_conv_3x3", 2), ("dil_conv_5x5", 4)])
def test_dilated_convolution_reaches_twice_as_far(name: str, reach: int) -> None:
    """The kernel's first tap reads `reach` pixels up and left, zeros outside; ReLU comes before, the 1x1 after."""
    op = mixed(2, 1, (name,))
    transparent(op)
    _, depthwise, pointwise, _ = op._ops[0].op
    shift(depthwise, 0, 0)
    swap(pointwise)
    x = torch.arange(72, dtype=torch.float64).reshape(1, 2, 6, 6) - 3
    want = torch.zeros_like(x)
    want[:, :, reach:, reach:] = x.clamp(min=0)[:, :, : 6 - reach, : 6 - reach].flip(1)
    assert_close(op(x, tensor([1])), want)


@pytest.mark.parametrize(("name", "reach"), [("sep_conv_3x3", 1), ("sep_conv_5x5", 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_is_two_of_them_and_the_first_strides(name: str, reach: int, stride: int) -> None:
    op = mixed(2, stride, (name,))
    transparent(op)
    layers = op._ops[0].op
    shift(layers[1], reach, reach)  # the middle: no shift
    shift(layers[5], 2 * reach, reach)  # `reach` pixels further down
    swap(layers[2])
    with torch.no_grad():
        layers[6].weight.copy_(tensor([[1, 0], [0, -1]])[:, :, None, None])  # after the last ReLU: may be negative
    x = torch.arange(128, dtype=torch.float64).reshape(1, 2, 8, 8) - 3
    half = x.clamp(min=0)[:, :, ::stride, ::stride].flip(1)
    want = torch.zeros_like(half)
    want[:, :, :-reach] = half[:, :, reach:]
    want[:, 1] *= -1
    assert_close(op(x, tensor([1])), want)


def test_weights_past_an_edges_own_list_are_ignored() -> None:
    op = mixed(2, 1, ("none", "skip_connect"))
    assert torch.equal(op(flat(1, 2), tensor([1, 2, float("nan")])), flat(2, 4))


# -------------------------------------------------------------------------------------------------------- cells

SKIPS = Space.uniform("skips", ("none", "skip_connect"))
PRIMES = [1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41]
# with s0 = 1 and s1 = 10: 1 + 20; 3 + 50 + 7*21; 11 + 130 + 17*21 + 19*200; 23 + 290 + 31*21 + 37*200 + 41*4298
NODES = (21, 200, 4298, 184582)


def skip_cell(kind: str = "normal", C: int = 2, k: int = 1) -> Cell:
    """A cell whose preprocess layers pass positive inputs on."""
    cell = Cell(SKIPS, kind, C, C, C, reduction_prev=False, partial_channels=k).double()
    transparent(cell)
    with torch.no_grad():
        for layer in (cell.preprocess0, cell.preprocess1):
            layer.op[1].weight.copy_(torch.eye(C)[:, :, None, None])
    return cell


@pytest.mark.parametrize("by", ["ops", "edges", "both"])
def test_order_of_edges_and_nodes(by: str) -> None:
    """Edge e's weight is the e-th prime: only the offsets 0, 2, 5, 9 give these sums."""
    primes, ones = tensor(PRIMES), torch.ones(14, dtype=torch.float64)
    on = {"ops": (primes, None), "edges": (ones, primes), "both": (2 * primes, ones / 2)}[by]
    ops = torch.stack([9 * ones, on[0]], dim=1)
    out = skip_cell()(flat(1, 2), flat(10, 20), CellWeights(ops, on[1]))
    assert_close(out, flat(*(c * n for n in NODES for c in (1, 2))))


@pytest.mark.parametrize(
    ("edge", "node", "state"),
    [
        *[(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 1, 2), (5, 2, 0), (6, 2, 1), (7, 2, 2), (8, 2, 3)],
        *[(9, 3, 0), (10, 3, 1), (11, 3, 2), (12, 3, 3), (13, 3, 4)],
    ],
)
def test_one_edge_alone(edge: int, node: int, state: int) -> None:
    """The only edge into its node carries that state and no other (the states before it are fed by their first edges)."""
    weights = torch.zeros(14, dtype=torch.float64)
    for first, value in ((0, 3), (2, 4), (5, 5)):  # nodes 0, 1, 2 = 3, 4, 5 times s0
        weights[first] = value
    weights[[[0, 1], [2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13]][node]] = 0
    weights[edge] = 100
    ops = torch.stack([torch.zeros_like(weights), weights], dim=1)
    out = skip_cell(C=2)(flat(1, 1), flat(7, 7), CellWeights(ops))
    states = [1, 7, 3, 4, 5]
    assert (node + 2) > state
    assert_close(out[:, 2 * node : 2 * node + 2], flat(*[100 * states[state]] * 2))


def test_beta_scales_the_bypass_too() -> None:
    ones = torch.ones(14, dtype=torch.float64)
    ops = torch.stack([ones, 0 * ones], dim=1)  # nothing but the bypass
    out = skip_cell(C=4, k=2)(flat(1, 2, 3, 4), flat(10, 20, 30, 40), CellWeights(ops, tensor(PRIMES)))
    assert_close(out[:, :4], flat(0, 63, 0, 84))  # node 0: 1 * (3, 4) + 2 * (30, 40) between the processed zeros


@pytest.mark.parametrize(
    ("kind", "strided"), [("normal", set()), ("reduce", {0, 1, 2, 3, 5, 6, 9, 10})], ids=["normal", "reduce"]
)
def test_which_edges_stride(kind: str, strided: set[int]) -> None:
    cell = Cell(S0, kind, 4, 4, 4, reduction_prev=False).double()
    halved = set()

    def watch(edge: int, x: Tensor, y: Tensor) -> None:
        assert y.shape[2:] in (x.shape[2:], (x.shape[2] // 2, x.shape[3] // 2))
        if y.shape[2] < x.shape[2]:
            halved.add(edge)

    for e, op in enumerate(cell._ops):
        op.register_forward_hook(lambda _, args, y, e=e: watch(e, args[0], y))
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    out = cell(x, x, CellWeights(torch.rand(14, 8, dtype=torch.float64)))
    assert halved == strided
    assert out.shape == ((2, 16, 4, 4) if strided else (2, 16, 8, 8))


def test_after_a_reduction_the_older_input_is_halved() -> None:
    """preprocess0 reads the even pixels for its first half of channels and the odd ones for the second."""
    cell = Cell(SKIPS, "normal", 1, 2, 2, reduction_prev=True).double()
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


def test_the_output_is_nobodys_state() -> None:
    """Callers modify it in place (drop-path, auxiliary skips): the gradients stay right."""
    cell = Cell(S0, "normal", 4, 4, 4, reduction_prev=False).double()
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = CellWeights(torch.rand(14, 8, dtype=torch.float64))
    (want,) = torch.autograd.grad((3 * cell(x, x, weights)).sum(), x)
    out = cell(x, x, weights)
    out *= 3
    (got,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(got, want)

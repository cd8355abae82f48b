"""Cases small enough to be worked out by hand: channels, bypass, strides, and each candidate on a few pixels."""

import pytest
import torch
from torch import Tensor

from fastdarts.kernels.graph import Candidate
from fastdarts.ops.mixed_cell import channel_shuffle, mixed_cell
from tests.ops.cells import one_edge
from tests.support.backends import BACKENDS
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")
NONE, SKIP, MAX, AVG, *_ = Candidate


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def flat(*values: float, side: int = 2) -> Tensor:
    """One image whose c-th channel is values[c] everywhere: (1, C, side, side)."""
    return tensor(list(values)).reshape(1, -1, 1, 1).expand(1, len(values), side, side).clone()


def picture(rows: list[list[float]]) -> Tensor:
    """One image of one channel."""
    return tensor(rows)[None, None]


COUNT = picture([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]])


def edge(
    x: Tensor,
    weights: list[float] | Tensor,
    *candidates: Candidate,
    backend: str,
    stride: int = 1,
    k: int = 1,
    chosen: list[int] | None = None,
    kernels: tuple[Tensor, ...] = (),
    train: bool = False,
) -> Tensor:
    """One edge; unless `train`, every BatchNorm passes its input on: running mean 0, running variance 1 - eps."""
    graph, Cq = one_edge(*candidates, stride=stride), x.shape[1] // k
    still = torch.zeros(graph.norms * Cq, dtype=torch.float64)
    return mixed_cell(
        [x],
        (weights if isinstance(weights, Tensor) else tensor(weights))[None],
        None,
        torch.cat([torch.empty(0, dtype=torch.float64), *(w.flatten() for w in kernels)]),
        None if train else (still, still + 1 - 1e-5),
        None if chosen is None else torch.tensor([chosen]),
        graph=graph,
        partial_channels=k,
        training=train,
        backend=backend,
    )


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
def test_channel_shuffle_order(k: int, order: list[int], backend: str) -> None:
    assert torch.equal(channel_shuffle(flat(*range(8)), k), flat(*order))
    assert torch.equal(edge(flat(*range(8)), [1], SKIP, k=k, backend=backend), flat(*order))


def test_first_channels_are_processed_and_interleaved(backend: str) -> None:
    out = edge(flat(1, 10, 100, 1000), [5, 3], NONE, SKIP, k=2, backend=backend)
    assert torch.equal(out, flat(3, 100, 30, 1000))  # [3, 30 | 100, 1000], shuffled


def test_quarter_of_channels_is_processed(backend: str) -> None:
    out = edge(flat(1, 2, 3, 4, 5, 6, 7, 8), [-1], SKIP, k=4, backend=backend)
    assert torch.equal(out, flat(-1, 3, 5, 7, -2, 4, 6, 8))


@pytest.mark.parametrize(
    ("chosen", "want"), [([1, 2], [1, 30, 300, 1000]), ([0, 3], [3, 10, 100, 3000]), ([3, 0], [3, 10, 100, 3000])]
)
def test_chosen_channels_keep_their_positions(chosen: list[int], want: list[float], backend: str) -> None:
    out = edge(flat(1, 10, 100, 1000), [5, 3], NONE, SKIP, k=2, chosen=chosen, backend=backend)
    assert torch.equal(out, flat(*want))


@pytest.mark.parametrize("chosen", [None, [0, 1]])
def test_bypass_is_max_pooled_with_stride(chosen: list[int] | None, backend: str) -> None:
    x = torch.cat([COUNT, COUNT, COUNT, -COUNT], dim=1)
    out = edge(x, [1], NONE, stride=2, k=2, chosen=chosen, backend=backend)
    up, down, zero = [[5, 7], [13, 15]], [[-0.0, -2], [-8, -10]], [[0, 0], [0, 0]]
    order = [zero, up, zero, down] if chosen is None else [zero, zero, up, down]
    assert torch.equal(out, tensor(order)[None])


def test_first_of_equal_pixels_in_bypass_gets_gradient(backend: str) -> None:
    x = flat(7, 7, side=4).requires_grad_()
    edge(x, [1], NONE, stride=2, k=2, backend=backend).sum().backward()
    first = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(x.grad, tensor([[[[0.0] * 4] * 4, first]]))


# -------------------------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize(("stride", "side"), [(1, 4), (2, 2)])
def test_none_is_zero(stride: int, side: int, backend: str) -> None:
    x = (COUNT + 1).requires_grad_()
    weight = tensor([4]).requires_grad_()
    out = edge(x, weight, NONE, stride=stride, backend=backend)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(1, 1, side, side, dtype=torch.float64))
    assert weight.grad.item() == 0
    assert x.grad.count_nonzero() == 0


@pytest.mark.parametrize("train", [True, False])
def test_skip_is_identity(train: bool, backend: str) -> None:
    assert torch.equal(edge(-COUNT, [1], SKIP, train=train, backend=backend), -COUNT)  # no ReLU, no batch norm


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("candidate", "pooled"), [(MAX, [[-15, -13], [-7, -5]]), (AVG, [[-17.5, -16], [-11.5, -10]])])
def test_pools_of_negative_pixels(candidate: Candidate, pooled: list[list[float]], train: bool, backend: str) -> None:
    """COUNT - 20 under stride 2: padding neither wins a maximum nor counts in a mean; then a batch norm of its own."""
    want = picture(pooled)
    if train:
        spread = want - (-10 if candidate == MAX else -13.75)
        want = spread / (spread.square().mean() + 1e-5).sqrt()
        assert spread.sum() == 0
    assert_close(edge(COUNT - 20, [1], candidate, stride=2, train=train, backend=backend), want)


def test_max_pool_with_stride_1(backend: str) -> None:
    want = [[5, 6, 7, 7], [9, 10, 11, 11], [13, 14, 15, 15], [13, 14, 15, 15]]
    assert_close(edge(COUNT, [2], MAX, backend=backend), 2 * picture(want))


def test_average_pool_without_batch_norm(backend: str) -> None:
    want = [[2.5, 3, 4, 4.5], [4.5, 5, 6, 6.5], [8.5, 9, 10, 10.5], [10.5, 11, 12, 12.5]]
    assert_close(edge(COUNT, [2], Candidate.PLAIN_AVG_POOL_3, train=True, backend=backend), 2 * picture(want))


@pytest.mark.parametrize(("stride", "count"), [(1, [2, 1, 1, 0]), (2, [1, 1, 0, 0])])
def test_first_of_equal_maxima_gets_gradient(stride: int, count: list[int], backend: str) -> None:
    """The first of a window, row by row: one up and one to the left, where the image goes on there."""
    x = flat(7, side=4).requires_grad_()
    edge(x, [1], MAX, stride=stride, backend=backend).sum().backward()
    assert_close(x.grad, torch.outer(tensor(count), tensor(count))[None, None])


def test_strided_skip_reads_two_pixel_grids(backend: str) -> None:
    kernels = tensor([1, 0]), tensor([0, 1])  # the first reads channel 0, the second channel 1
    x = torch.cat([COUNT - 8, 100 * COUNT], dim=1)
    want = tensor([[[0, 0], [0, 2]], [[500, 700], [1300, 1500]]])[None]  # ReLU first; shifted by one pixel each way
    assert_close(edge(x, [1], SKIP, stride=2, kernels=kernels, backend=backend), want)


def shift(size: int, dy: int, dx: int) -> Tensor:
    """Two depthwise kernels that are zero except for a one at row dy, column dx."""
    kernel = torch.zeros(2, 1, size, size, dtype=torch.float64)
    kernel[:, 0, dy, dx] = 1
    return kernel


SWAP = tensor([[0, 1], [1, 0]])  # a 1x1 convolution that swaps its two channels


@pytest.mark.parametrize(("candidate", "reach"), [(Candidate.DIL_CONV_3, 2), (Candidate.DIL_CONV_5, 4)])
def test_dilated_convolution_reach(candidate: Candidate, reach: int, backend: str) -> None:
    """The kernel's first tap reads `reach` pixels up and left, zeros outside; ReLU comes before, the 1x1 after."""
    x = torch.arange(72, dtype=torch.float64).reshape(1, 2, 6, 6) - 3
    want = torch.zeros_like(x)
    want[:, :, reach:, reach:] = x.clamp(min=0)[:, :, : 6 - reach, : 6 - reach].flip(1)
    assert_close(edge(x, [1], candidate, kernels=(shift(reach + 1, 0, 0), SWAP), backend=backend), want)


@pytest.mark.parametrize(("candidate", "reach"), [(Candidate.SEP_CONV_3, 1), (Candidate.SEP_CONV_5, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_strides_in_first_half(candidate: Candidate, reach: int, stride: int, backend: str) -> None:
    size = 2 * reach + 1
    kernels = (
        shift(size, reach, reach),  # the middle: no shift
        SWAP,
        shift(size, 2 * reach, reach),  # `reach` pixels further down
        tensor([[1, 0], [0, -1]]),  # after the last ReLU: may be negative
    )
    x = torch.arange(128, dtype=torch.float64).reshape(1, 2, 8, 8) - 3
    half = x.clamp(min=0)[:, :, ::stride, ::stride].flip(1)
    want = torch.zeros_like(half)
    want[:, :, :-reach] = half[:, :, reach:]
    want[:, 1] *= -1
    assert_close(edge(x, [1], candidate, stride=stride, kernels=kernels, backend=backend), want)


def test_dense_convolutions(backend: str) -> None:
    """1x1 and 3x3, each on both channels after a ReLU; zeros around."""
    x = torch.cat([COUNT - 3, -COUNT], dim=1)
    relu = COUNT.sub(3).clamp(min=0)
    one = tensor([[2, 5], [-1, 7]])
    assert_close(edge(x, [3], Candidate.CONV_1, kernels=(one,), backend=backend), 3 * torch.cat([2 * relu, -relu], dim=1))
    three = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    three[0, 0, 0, 1] = three[1, 0, 1, 2] = 1  # the pixel above, the pixel to the right
    three[:, 1] = 100  # of what the ReLU has cut to zero
    want = torch.zeros_like(x)
    want[:, 0, 1:] = relu[:, 0, :-1]
    want[:, 1, :, :-1] = relu[:, 0, :, 1:]
    assert_close(edge(x, [1], Candidate.CONV_3, kernels=(three,), backend=backend), want)


def test_weights_beyond_edge_list_are_ignored(backend: str) -> None:
    weights = tensor([1, 2, float("nan")]).requires_grad_()
    out = edge(flat(1, 2), weights, NONE, SKIP, backend=backend)
    assert torch.equal(out, flat(2, 4))
    out.sum().backward()
    assert torch.equal(weights.grad, tensor([0, 12, 0]))


# -------------------------------------------------------------- discrete cells: affine BatchNorms, weights of images


def test_largest_pixel_without_normalisation(backend: str) -> None:
    """A pool without BatchNorm, at both strides."""
    out = edge(COUNT, [1], Candidate.PLAIN_MAX_POOL_3, backend=backend, train=True)
    assert torch.equal(out, picture([[5, 6, 7, 7], [9, 10, 11, 11], [13, 14, 15, 15], [13, 14, 15, 15]]))
    halved = edge(COUNT, [2], Candidate.PLAIN_MAX_POOL_3, stride=2, backend=backend, train=True)
    assert torch.equal(halved, 2 * picture([[5, 7], [13, 15]]))
    average = edge(COUNT, [1], Candidate.PLAIN_AVG_POOL_3, stride=2, backend=backend, train=True)
    assert_close(average, picture([[2.5, 4.0], [8.5, 10.0]]), "out")


def test_seven_by_seven_taps_twice(backend: str) -> None:
    """One pixel of 1 in 7x7, taps of 1 at the corner of each kernel: it moves by 3 up and left, twice."""
    x = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    x[0, 0, 6, 6] = 1
    corner = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    corner[0, 0, 6, 6] = 1
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    out = edge(x, [1], Candidate.SEP_CONV_7, kernels=(corner, one, corner, one), backend=backend)
    want = torch.zeros_like(x)
    want[0, 0, 0, 0] = 1
    assert_close(out, want, "out")


def test_affine_norm_and_weights_of_images(backend: str) -> None:
    """Two images of one channel; out = edge weight of the image * (2 xhat + 3), xhat of ReLU and a 1x1 convolution of 1."""
    x = tensor([[1, 3], [-7, 4]]).reshape(2, 1, 1, 2)
    affine, edges = tensor([[2], [3]]).requires_grad_(), tensor([[0.0, 1.5]])
    graph, rectified = one_edge(Candidate.CONV_1), tensor([1, 3, 0, 4])
    xhat = (rectified - 2) / (tensor(2.5) + 1e-5).sqrt()  # mean 2, variance (1 + 1 + 4 + 4) / 4
    out = mixed_cell(
        [x], tensor([[1]]), edges, tensor([1]), None, None, affine=affine, graph=graph, training=True, backend=backend
    )
    want = torch.cat([0 * xhat[:2], 1.5 * (2 * xhat[2:] + 3)]).reshape(2, 1, 1, 2)
    assert_close(out.detach(), want, "out")
    out.sum().backward()
    assert_close(affine.grad, tensor([[1.5 * xhat[2:].sum().item()], [3.0]]), "d affine")

"""Eager candidates next to fused ones: the same numbers, names and gradients as if all were fused."""

import pytest
import torch
from torch import Tensor, nn

from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import CANDIDATES, NASBENCH201, Space
from fastdarts.supernet import NASBench201Supernet, Supernet, register_candidate
from fastdarts.supernet.eager_candidates import BUILDERS, MixedEdgesWithEager, Noise, SkipDropout
from fastdarts.supernet.mixed import MixedEdges
from tests.support.backends import BACKENDS
from tests.zoo.operations import OPS, ReLUConvBN

pytestmark = pytest.mark.usefixtures("one_thread")
FUSED = ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")


@pytest.fixture
def registered():
    """Registers candidates that are gone afterwards."""
    before = dict(CANDIDATES), dict(BUILDERS)
    yield register_candidate
    for table, old in zip((CANDIDATES, BUILDERS), before, strict=True):
        table.clear()
        table.update(old)


def numbers(net: nn.Module, space: Space, x: Tensor, beta: bool) -> list[Tensor]:
    """Features and every gradient, by name."""
    relaxation = SoftmaxRelaxation(space, edge_normalization=beta, seed=4, dtype=torch.float64)
    features = net(x, relaxation.weights(), torch.full((1,), 3))
    loss = sum((f * torch.arange(f.numel(), dtype=torch.float64).view(f.shape).cos()).sum() for f in features)
    loss.backward()
    grads = {}
    for name, module in net.named_modules():
        if hasattr(module, "unpacked") and module.weights.grad is not None:  # a cell may have no convolution left
            grads |= {f"{name}.{n}": t for n, t in module.unpacked(module.weights.grad).items()}
    grads |= {n: p.grad for n, p in net.named_parameters() if p.grad is not None and not n.endswith(".weights")}
    return [*features, *(p.grad for p in relaxation.parameters()), *(grads[n] for n in sorted(grads))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("k", "sampling"), [(1, "first"), (2, "first"), (2, "random")])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_custom_candidate_matches_fused_one(registered, backend, k, sampling, place):
    registered("mine", lambda C, stride: OPS[FUSED[place]](C, stride))
    names = tuple("mine" if i == place else name for i, name in enumerate(FUSED))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    how = {"C": 4, "layers": 3, "partial_channels": k, "channel_sampling": sampling, "seed": 7}
    space, own = Space.uniform("fused", FUSED), Space.uniform("own", names)
    torch.manual_seed(2)
    one, other = Supernet(space, backend="definition", **how).double(), Supernet(own, backend=backend, **how).double()
    assert isinstance(one.cells[0]._ops, MixedEdges) and isinstance(other.cells[0]._ops, MixedEdgesWithEager)
    other.load_state_dict(one.state_dict())
    assert set(other.state_dict()) == set(one.state_dict())
    for training in (True, False):
        one.train(training), one.zero_grad(), other.train(training), other.zero_grad()
        a, b = numbers(one, space, x, k > 1), numbers(other, own, x, k > 1)
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(dict(other.state_dict()), dict(one.state_dict()), rtol=1e-9, atol=1e-10)


def test_edge_may_have_only_eager_candidates(registered):
    registered("mine", OPS["sep_conv_3x3"])
    space = Space.uniform("own", ("mine", "noise"))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for k in (1, 2):
        net = Supernet(space, C=4, layers=3, partial_channels=k).double()
        values = numbers(net, space, x, k > 1)
        assert all(v.isfinite().all() for v in values)


def test_custom_candidate_in_nas_bench_201(registered):
    registered("mine", lambda C, stride: ReLUConvBN(C, C, 3, track=False))
    own = Space("own", tuple(("none", "skip_connect", "nor_conv_1x1", "mine") for _ in range(6)), (), 3, 1, "nasbench201")
    like = Space(
        "like", tuple(("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3") for _ in range(6)), (), 3, 1, "nasbench201"
    )
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    one, other = (NASBench201Supernet(s, C=4, cells_per_stage=1).double() for s in (like, own))
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(numbers(other, own, x, False), numbers(one, like, x, False), rtol=1e-9, atol=1e-10)
    assert NASBENCH201.kinds == ("normal",)


def test_candidate_names_are_unique(registered):
    registered("mine", OPS["sep_conv_3x3"])
    for name in ("mine", "sep_conv_3x3", "nor_conv_1x1"):
        with pytest.raises(ValueError, match=f"candidate {name} already exists"):
            registered(name, OPS["sep_conv_3x3"])


def test_noise_has_output_shape_and_ignores_input():
    x = torch.full((2, 3, 8, 6), torch.nan, requires_grad=True)
    torch.manual_seed(0)
    one, two = Noise(3, 1)(x), Noise(3, 2)(x)
    assert one.shape == (2, 3, 8, 6) and two.shape == (2, 3, 4, 3)
    assert not one.requires_grad and one.isfinite().all()
    assert abs(one.mean()) < 0.3 and 0.8 < one.std() < 1.2
    assert not torch.equal(one, Noise(3, 1)(x))


def test_skip_dropout_matches_formula():
    drop = SkipDropout()
    x = torch.ones(200, 50)
    assert torch.equal(drop(x), x)  # rate 0
    drop.rate.fill_(0.4)
    torch.manual_seed(0)
    out = drop(x)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert abs((out == 0).float().mean() - 0.4) < 0.02
    assert torch.equal(drop.eval()(x), x)


def test_only_skips_of_stride_1_have_dropout():
    net = Supernet(Space.uniform("own", FUSED), C=4, layers=3, skip_dropout=True)
    found = [name for name, m in net.named_modules() if isinstance(m, SkipDropout)]
    normal, reduce = [c for c in net.cells if c.kind == "normal"], [c for c in net.cells if c.kind == "reduce"]
    assert len(found) == 14 * len(normal) + 6 * len(reduce)  # of 14 edges 8 leave the inputs and stride
    net.drop_skips(0.25)
    assert all(float(m.rate) == 0.25 for m in net.modules() if isinstance(m, SkipDropout))
    assert not [name for name in net.state_dict() if "rate" in name]
    plain = Supernet(Space.uniform("own", FUSED), C=4, layers=3)
    plain.load_state_dict(net.state_dict())


def test_custom_batch_norm_is_not_synchronised(registered):
    registered("mine", OPS["sep_conv_3x3"])
    net = Supernet(Space.uniform("own", ("mine", "skip_connect")), C=4, layers=3)
    with pytest.raises(ValueError, match=r"cells\.0\._ops: BatchNorm in a custom candidate cannot be synchronised"):
        net.synchronise(object())
    net.synchronise(None)


@pytest.mark.parametrize("k", [1, 2])
def test_float32_candidate_under_autocast(k: int, registered) -> None:
    """As a softmax does: what it gives joins the cell's bfloat16, whichever channels pass through it."""
    dtypes: set[torch.dtype] = set()

    class Own(nn.AvgPool2d):
        def forward(self, x: Tensor) -> Tensor:
            dtypes.add(x.dtype)
            return super().forward(x.float())

    registered("own", lambda C, stride: Own(stride, stride))
    space = Space.uniform("mine", ("none", "sep_conv_3x3", "own"))
    torch.manual_seed(0)
    net, relaxation = Supernet(space, C=4 * k, layers=3, partial_channels=k), SoftmaxRelaxation(space, edge_normalization=k > 1)
    with torch.autocast("cpu", torch.bfloat16):
        features = net(torch.randn(2, 3, 16, 16), relaxation.weights(), torch.zeros(1, dtype=torch.int64))
        sum(f.float().square().sum() for f in features).backward()
    assert torch.bfloat16 in dtypes and {f.dtype for f in features} == {torch.bfloat16}
    assert all(p.grad.isfinite().all() for p in relaxation.parameters())

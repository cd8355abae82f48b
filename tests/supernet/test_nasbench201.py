"""NAS-Bench-201's supernet against a network of plain modules, float64: features, every gradient, running statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.spaces import NASBENCH201, S0, Space
from fastdarts.supernet import CellWeights, NASBench201Supernet, Supernet
from tests.support.backends import BACKENDS
from tests.zoo.nasbench201 import NB201, MixedOps, NB201Cell, NB201Network

pytestmark = pytest.mark.usefixtures("one_thread")


def renamed(name: str) -> str:
    """A parameter of the plain network under the benchmark's name."""
    for block in ("conv_a", "conv_b"):
        name = name.replace(f".{block}.", f".{block}.op.")
    return name.replace(".ops.", ".")


class PartialOps(MixedOps):
    """The first half of the channels is processed; output channel c is channel (c mod 2) * C/2 + c div 2 of both halves."""

    def __init__(self, C: int) -> None:
        super().__init__(C // 2)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        half = x.shape[1] // 2
        both = torch.cat([super().forward(x[:, :half], weights), x[:, half:]], dim=1)
        return both[:, [(c % 2) * half + c // 2 for c in range(2 * half)]]


class PartialCell(NB201Cell):
    def make_edge(self, C: int) -> nn.Module:
        return PartialOps(C)


class PartialNetwork(NB201Network):
    Cell = PartialCell


def pair(backend: str, mode: str = "batch", k: int = 1) -> tuple[NB201Network, NASBench201Supernet]:
    torch.manual_seed(3)
    plain = (NB201Network if k == 1 else PartialNetwork)(C=3 * k).double()
    sizes = {"C": 3 * k, "cells_per_stage": 1, "partial_channels": k}
    net = NASBench201Supernet(NASBENCH201, **sizes, batch_norm=mode, backend=backend).double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d) and mode == "running" and not module.track_running_stats:
            module.track_running_stats = True
            module.register_buffer("running_mean", torch.zeros(module.num_features, dtype=torch.float64))
            module.register_buffer("running_var", torch.ones(module.num_features, dtype=torch.float64))
            module.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
    state = {renamed(name): t for name, t in plain.state_dict().items() if name != "arch_params"}
    net.load_state_dict(state)
    return plain, net


def plain_features(plain: NB201Network, x: Tensor, rows: Tensor) -> list[Tensor]:
    x, features = plain.stem(x), []
    for cell in plain.cells:
        x = cell(x, rows) if isinstance(cell, NB201Cell) else cell(x)
        features += [x] if isinstance(cell, NB201Cell) else []
    return [*features[:-1], plain.lastact(features[-1].clone())]


@pytest.mark.parametrize(("mode", "k"), [("batch", 1), ("running", 1), ("running", 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_supernet_matches_plain_modules(backend, mode, k):
    plain, net = pair(backend, mode, k)
    g = torch.Generator().manual_seed(5)
    x = torch.randn(3, 3, 8, 12, generator=g, dtype=torch.float64)
    rows = torch.randn(6, 5, generator=g, dtype=torch.float64)
    for training in (True, True, False):
        sides = []
        for module in (plain, net):
            module.train(training)
            module.zero_grad()
            weights, image = rows.clone().requires_grad_(), x.clone().requires_grad_()
            given = plain_features(plain, image, weights) if module is plain else net(image, {"normal": CellWeights(weights)})
            loss = sum((F.softplus(f) * torch.arange(f.numel(), dtype=torch.float64).view(f.shape).cos()).sum() for f in given)
            loss.backward()
            own = renamed if module is plain else str
            grads = {own(name): p.grad for name, p in module.named_parameters() if p.grad is not None}
            for name, mixed in module.named_modules():
                if hasattr(mixed, "unpacked"):
                    packed = grads.pop(f"{name}.weights")
                    grads |= {f"{name}.{n}": t for n, t in mixed.unpacked(packed).items()}
            sides.append((given, weights.grad, image.grad, grads))
        (f0, w0, i0, g0), (f1, w1, i1, g1) = sides
        torch.testing.assert_close(f1, f0, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close((w1, i1), (w0, i0), rtol=1e-9, atol=1e-9)
        assert set(g1) == set(g0)
        for name, grad in g0.items():
            torch.testing.assert_close(g1[name], grad, rtol=1e-9, atol=1e-9)
    mine = net.state_dict()
    theirs = {renamed(name): t for name, t in plain.state_dict().items()}
    assert set(mine) == set(theirs) - {"arch_params"}  # the classifier came with the checkpoint
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-9)


def test_published_network():
    """Three stages of five cells, of the published widths."""
    net = NASBench201Supernet(NASBENCH201)
    kinds = [type(cell).__name__ for cell in net.cells]
    assert kinds == [
        *["NASBench201Cell"] * 5,
        "ResidualBlock",
        *["NASBench201Cell"] * 5,
        "ResidualBlock",
        *["NASBench201Cell"] * 5,
    ]
    assert net.tap_channels == [16, 32, 64] and net.multiple == 4
    assert tuple(NASBENCH201.normal[0]) == NB201
    # of each cell 6 edges with a 1x1 and a 3x3 convolution
    assert sum(c.edges.weights.numel() for c in net.cells if hasattr(c, "edges")) == 5 * 6 * 10 * (16**2 + 32**2 + 64**2)


def test_batch_statistics_mode_keeps_no_buffers():
    net = NASBench201Supernet(NASBENCH201, C=4, cells_per_stage=1)
    assert not [name for name in net.state_dict() if ".edges." in name and "running" in name]
    kept = NASBench201Supernet(NASBENCH201, C=4, cells_per_stage=1, batch_norm="running")
    assert [name for name in kept.state_dict() if ".edges." in name and "running" in name]


def test_space_of_other_network_is_rejected():
    with pytest.raises(ValueError, match="space S0 belongs to another network: use Supernet"):
        NASBench201Supernet(S0)
    with pytest.raises(ValueError, match="space nasbench201 belongs to another network"):
        Supernet(NASBENCH201)
    with pytest.raises(ValueError, match="cells of 3 nodes and no reduction cell"):
        Space("twice", NASBENCH201.normal, NASBENCH201.normal, nodes=3, inputs=1, skeleton="nasbench201")
    with pytest.raises(ValueError, match="images of 6x6 pixels"):
        NASBench201Supernet(NASBENCH201, C=4, cells_per_stage=1)(torch.rand(2, 3, 6, 6), {})

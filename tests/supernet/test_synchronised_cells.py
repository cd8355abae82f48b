"""A whole supernet on two ranks' images with synchronised BatchNorm: what one rank gives for all of them, by how many sums."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor

from fastdarts.spaces import NASBENCH201, S0
from fastdarts.supernet import CellWeights, MixedEdges, NASBench201Supernet, Network, Supernet
from fastdarts.supernet.nasbench201 import BatchNormMode
from fastdarts.supernet.network import Stem
from tests.ops.exactness import Named, assert_exact
from tests.ops.ranks import Rank, Twins, on_ranks
from tests.support.backends import BACKENDS, needs_native

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = {"cifar": 1, "imagenet": 3}  # of a stem


def supernet(stem: Stem, k: int, backend: str, **more: bool) -> Supernet:
    torch.manual_seed(0)
    return Supernet(S0, C=4, layers=3, stem=stem, partial_channels=k, backend=backend, **more)


def of_the_benchmark(mode: BatchNormMode, backend: str) -> NASBench201Supernet:
    torch.manual_seed(0)
    return NASBench201Supernet(NASBENCH201, C=4, cells_per_stage=1, batch_norm=mode, backend=backend)


def mix(E: int = 14) -> dict[str, CellWeights]:
    g = torch.Generator().manual_seed(1)
    ops, edges = (torch.rand(E, *shape, generator=g, dtype=torch.float64).requires_grad_() for shape in ((8,), ()))
    return {"normal": CellWeights(ops, edges), "reduce": CellWeights(ops, edges)}


def run(made: Network, sync: Rank | None) -> Named:
    """Features, running statistics and every gradient, of this rank's images."""
    net, weights = (
        deepcopy(made).double(),
        mix(made.space.num_edges),
    )  # made by one thread: the generator of its weights is everybody's
    net.synchronise(sync)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    features = net(x if sync is None else x.chunk(2)[sync.rank], weights)
    of = {"ops": weights["normal"].ops, "edges": weights["normal"].edges} | dict(net.named_parameters())
    grads = torch.autograd.grad(sum(f.square().sum() for f in features), list(of.values()))
    buffers = {name: b for name, b in net.named_buffers() if "running" in name}
    named = {f"out {i}": f.detach() for i, f in enumerate(features)} | buffers
    return named | {f"d {name}": g for name, g in zip(of, grads, strict=True)}


NETS = {
    "cifar": partial(supernet, "cifar", 1),
    "imagenet": partial(supernet, "imagenet", 2),
    "eager skips": partial(supernet, "cifar", 1, skip_dropout=True),
    "nasbench201": partial(of_the_benchmark, "batch"),
    "nasbench201, running": partial(of_the_benchmark, "running"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_two_ranks_match_one_with_all_images(make: Callable[[str], Network], backend: str) -> None:
    first, second = on_ranks(partial(run, make(backend)))
    want = run(make("definition"), None)

    def joined(name: str) -> Tensor:
        if name.startswith("out"):
            return torch.cat([first[name], second[name]])
        if name.startswith("d "):
            return first[name] + second[name]
        assert torch.equal(first[name], second[name]), name
        return first[name]

    assert_exact({name: joined(name) for name in first}, [], want, torch.float64)


@needs_native
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_cell_sums_nine_times_over_ranks(stem: Stem) -> None:
    """In each direction; the stem once a layer. The layer before the first cell's inputs counts for the stem."""
    net, weights, sync = supernet(stem, 1, "auto"), mix(), Twins()
    net.synchronise(sync)
    as_float = {kind: CellWeights(w.ops.float(), w.edges.float()) for kind, w in weights.items()}
    features = net(torch.randn(2, 3, 32, 32), as_float)
    assert sync.sums == 9 * 3 + LAYERS[stem]
    sum(f.sum() for f in features).backward()
    assert sync.sums == 2 * (9 * 3 + LAYERS[stem])
    assert all(p.grad is not None for p in net.parameters())
    net.synchronise(None)
    net(torch.randn(2, 3, 32, 32), as_float)
    assert sync.sums == 2 * (9 * 3 + LAYERS[stem])


@pytest.mark.parametrize("backend", BACKENDS)
def test_call_counts_once(backend: str) -> None:
    net = supernet("cifar", 1, backend)
    net.synchronise(Twins())
    as_float = {kind: CellWeights(w.ops.float(), w.edges.float()) for kind, w in mix().items()}
    net(torch.randn(2, 3, 16, 16), as_float)
    counters = [b for name, b in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counters) == 1 + 3 * (2 + 1) and all(int(b) == 1 for b in counters)
    assert any(isinstance(m, MixedEdges) and m.sync is not None for m in net.modules())


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_evaluation_does_not_communicate(make: Callable[[str], Network]) -> None:
    """Rank 0 draws pictures alone, and the last batch of an evaluation differs between ranks; by batch statistics, too."""
    net, x = make("auto").double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    weights = mix(net.space.num_edges)
    want = net(x, weights)
    sync = Twins()
    net.synchronise(sync)
    assert all(torch.equal(a, b) for a, b in zip(net(x, weights), want, strict=True))
    assert sync.sums == 0

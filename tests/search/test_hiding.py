"""R-DARTS: drop path on mixed edges and the cutout that goes with it, by the formulas, and a search that is continued."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.objectives import Classification
from fastdarts.ops.philox import Stream
from fastdarts.search import Hooks, Search
from fastdarts.search.hiding import check_hiding, hide, share_of
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import KINDS, S4, Space
from fastdarts.supernet import CellWeights, Supernet
from tests.search.test_bilevel import FEW, Pair, at, batch
from tests.search.test_progressive import SPACE, Loader, settings, timeless
from tests.support import naive
from tests.support.backends import BACKENDS
from tests.support.naive import assert_all_close, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")


class Dropping(naive.Run):
    """The formulas with a factor for each edge of each cell and image."""

    factors: list[Tensor]

    def cell(self, net: Any, i: int, s0: Tensor, s1: Tensor, rows: Any, beta: Any, channels: Any) -> Tensor:
        return super().cell(net, i, s0, s1, rows, self.factors[i][:, :, None, None, None], channels)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropped_edges_match_formulas(backend: str, k: int) -> None:
    """An edge that is kept is divided by 1 - p; the draws are torch's, a cell after the other. Evaluation drops nothing."""
    pair = Pair("supervised", FEW, k, backend)
    supernet = Supernet(FEW, C=4, layers=3, partial_channels=k, backend=backend, drop_path=True).double()
    assert supernet.state_dict().keys() | {"classifier.weight", "classifier.bias"} == pair.supernet.state_dict().keys()
    supernet.load_state_dict(pair.supernet.state_dict())
    supernet.drop_edges(0.4)
    b = batch(1)
    x = naive.normalised(b.images, pair.objective.mean, pair.objective.std, b.flip.tolist())
    ops = {kind: torch.rand(14, 4, dtype=torch.float64).requires_grad_() for kind in KINDS}
    torch.manual_seed(2)
    run = Dropping(pair.theta, pair.stats)
    run.factors = [(torch.rand(14, 3, dtype=torch.float64) >= 0.4).double() / 0.6 for _ in range(3)]
    want = run.taps(pair.net, x, ops, None)
    torch.manual_seed(2)
    got = supernet(x, {kind: CellWeights(ops[kind]) for kind in KINDS})
    assert all(0 < f.count_nonzero() < f.numel() for f in run.factors)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)
    sides = [torch.autograd.grad(sum(t.square().sum() for t in taps), list(ops.values())) for taps in (got, want)]
    assert_all_close(dict(zip(KINDS, sides[0], strict=True)), dict(zip(KINDS, sides[1], strict=True)))
    for network in (supernet, pair.supernet):
        network.eval()
    pair.supernet.load_state_dict(supernet.state_dict())
    plain, dropping = (n(x, {kind: CellWeights(ops[kind]) for kind in KINDS})[-1] for n in (pair.supernet, supernet))
    assert torch.equal(plain, dropping)


def test_noise_is_dropped_too() -> None:
    """S4's candidate runs in eager mode: with everything dropped nothing is left of an edge."""
    supernet = Supernet(S4, C=4, layers=3, drop_path=True)
    supernet.drop_edges(1.0)
    edges = supernet.cells[0].drop_path
    edges.forward = lambda x, edges, E: torch.zeros(E, len(x))
    cell = supernet.cells[0](*torch.randn(2, 3, 12, 8, 8), CellWeights(torch.rand(14, 2)))
    assert cell.shape == (3, 16, 8, 8) and cell.count_nonzero() == 0


def test_published_growth() -> None:
    """From 0 in the first of 50 epochs to the maximum in the last, cutout's share from 0 to 1."""
    assert [share_of(epoch, 50) for epoch in (0, 7, 49)] == [0, 1 / 7, 1] and share_of(0, 1) == 0


def test_cutout_hides_growing_share() -> None:
    s, b = SearchSettings(seed=3, edge_cutout=4), batch(1, count=400)
    mean = (0.5, 0.25, 0.75)
    assert torch.equal(hide(b, s, 0.0, at(5), Stream.TRAIN, mean).images, b.images)
    hidden = [hide(b, s, share, at(5), Stream.TRAIN, mean).images for share in (0.5, 1.0)]
    changed = [(images != b.images).any(-1).flatten(1).sum(1) for images in hidden]
    assert 150 < int((changed[0] > 0).sum()) < 250 and bool((changed[1] > 0).all())
    assert int(changed[1].min()) >= 4 and int(changed[1].max()) <= 16
    once = changed[0] > 0
    assert torch.equal(hidden[0][once], hidden[1][once])  # the same squares
    assert hidden[1][hidden[1] != b.images].unique().tolist() == [64, 128, 191]
    assert not torch.equal(hidden[1], hide(b, s, 1.0, at(6), Stream.TRAIN, mean).images)
    assert not torch.equal(hidden[1], hide(b, s, 1.0, at(5), Stream.VAL, mean).images)


def searched(space: Space = SPACE, **changes: Any) -> Search:
    torch.manual_seed(0)
    supernet = Supernet(space, C=4, layers=3, drop_path=True)
    s = settings(progressive=False, epochs=3, begin=0, edge_drop_path=0.5, edge_cutout=4, **changes)
    return Search(supernet, Classification(supernet, 3), Loader(0), Loader(1), s)


@pytest.mark.parametrize("unrolled", [False, True])
def test_resume_is_bitwise_identical(unrolled: bool) -> None:
    whole, states = searched(unrolled=unrolled), []
    rates = []

    def note(report: Any) -> None:
        rates.append(float(whole.supernet.cells[1].drop_path.rate))
        states.append((deepcopy(whole.state_dict()), torch.get_rng_state()))

    want = timeless(list(whole.epochs(Hooks(note))))
    assert rates == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]
    again, (state, drawn) = searched(unrolled=unrolled), states[2]
    again.load_state_dict(state)
    torch.set_rng_state(drawn)
    assert timeless(list(again.epochs())) == want[1:]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"edge_normalization": True}, "--edge_drop_path: edges that are dropped for single images have no learnt weight"),
        ({"edge_normalization": False}, "--edge_cutout: squares are hidden from classification only"),
    ],
)
def test_unsuitable_searches_are_rejected(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_hiding(SearchSettings(edge_drop_path=0.2, **changes), supervised=False)
    check_hiding(SearchSettings(edge_drop_path=0.2, edge_normalization=False, edge_cutout=0), supervised=False)

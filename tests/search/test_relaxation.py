"""From alpha and beta to the weights of a cell."""

import io

import pytest
import torch
from torch import Tensor

from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import KINDS, S0, Space
from tests.support import naive
from tests.support.naive import assert_close

NET = naive.Net(C=4, layers=3)
RAGGED = Space("ragged", (("skip_connect", "none"), *[naive.S0[: 3 + e % 4] for e in range(13)]), (naive.S0,) * 14)


def make(space: Space = S0, seed: int = 0, edges: bool = True) -> SoftmaxRelaxation:
    return SoftmaxRelaxation(space, edge_normalization=edges, seed=seed, dtype=torch.float64)


def scaled(relaxation: SoftmaxRelaxation, factor: float = 2e3) -> SoftmaxRelaxation:
    with torch.no_grad():
        for p in relaxation.parameters():
            p.mul_(factor)
    return relaxation


def test_initial_values() -> None:
    """1e-3 * N(0, 1), (14, 8) and (14,), normal before reduce, alpha before beta; leaves that an optimizer may hold."""
    relaxation = make()
    parameters = relaxation.parameters()
    assert [tuple(p.shape) for p in parameters] == [(14, 8), (14, 8), (14,), (14,)]
    alpha, beta = relaxation.alpha, relaxation.beta
    held = [alpha["normal"], alpha["reduce"], beta["normal"], beta["reduce"]]
    assert all(p is h for p, h in zip(parameters, held, strict=True))
    assert all(p.is_leaf and p.requires_grad and p.dtype == torch.float64 for p in parameters)
    values = torch.cat([p.detach().flatten() for seed in range(20) for p in make(seed=seed).parameters()]) * 1e3
    assert len(values) == 20 * 252
    assert abs(float(values.mean())) < 4 * len(values) ** -0.5
    assert abs(float(values.std()) - 1) < 0.05
    assert len(set(values.tolist())) == len(values)


def test_initial_values_depend_on_seed() -> None:
    def starts(seed: int) -> list[Tensor]:
        return make(seed=seed).parameters()

    torch.manual_seed(0)
    first = starts(3)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, starts(3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, starts(4), strict=True))
    single = SoftmaxRelaxation(S0, edge_normalization=True, seed=3).parameters()
    assert all(torch.equal(a.float(), b) for a, b in zip(first, single, strict=True))


def test_weights_and_gradients() -> None:
    relaxation = scaled(make())
    weights = relaxation.weights()
    g = torch.Generator().manual_seed(1)
    got, want = [], []
    for kind in KINDS:
        rows = torch.stack(naive.edge_rows(relaxation.alpha[kind], NET, kind))
        beta = naive.edge_betas(relaxation.beta[kind])
        assert_close(weights[kind].ops, rows)
        assert_close(weights[kind].edges, beta)
        a, b = (torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (rows, beta))
        got.append((a * weights[kind].ops).sum() + (b * weights[kind].edges).sum())
        want.append((a * rows).sum() + (b * beta).sum())
    grads = [torch.autograd.grad(sum(x), relaxation.parameters()) for x in (got, want)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, tol=1e-12)


def test_edge_normalisation_is_per_node() -> None:
    edges = scaled(make()).weights()["reduce"].edges.detach()
    assert [round(float(e.sum()), 12) for e in (edges[0:2], edges[2:5], edges[5:9], edges[9:14])] == [1.0] * 4


def test_weights_match_hand_computation() -> None:
    relaxation = make()
    with torch.no_grad():
        relaxation.alpha["normal"].zero_()
        relaxation.alpha["normal"][3, 2] = torch.log(torch.tensor(9.0))
        relaxation.beta["normal"].zero_()
        relaxation.beta["normal"][13] = torch.log(torch.tensor(6.0))
    weights = relaxation.weights()["normal"]
    assert_close(weights.ops[0].detach(), torch.full((8,), 1 / 8, dtype=torch.float64))
    assert weights.ops[3].tolist() == pytest.approx([1 / 16, 1 / 16, 9 / 16] + [1 / 16] * 5)
    assert weights.edges.tolist() == pytest.approx([1 / 2] * 2 + [1 / 3] * 3 + [1 / 4] * 4 + [1 / 10] * 4 + [6 / 10])


def test_no_edge_normalisation() -> None:
    relaxation = make(edges=False)
    assert len(relaxation.parameters()) == 2
    assert all(w.edges is None for w in relaxation.weights().values())


def test_padding_has_zero_weight_and_gradient() -> None:
    relaxation = scaled(make(RAGGED))
    assert relaxation.alpha["normal"].shape == (14, 6)
    ops = relaxation.weights()["normal"].ops
    (grad,) = torch.autograd.grad((ops * torch.arange(6.0)).sum(), relaxation.alpha["normal"])
    assert torch.isfinite(grad).all()
    for e, names in enumerate(RAGGED.normal):
        own = len(names)
        assert_close(ops[e, :own].detach(), naive.softmax(relaxation.alpha["normal"][e, :own].detach()))
        assert ops[e, own:].count_nonzero() == grad[e, own:].count_nonzero() == 0
        assert grad[e, :own].count_nonzero() == own


def test_state_is_restored_in_place() -> None:
    first, second = scaled(make(seed=1)), make(seed=2)
    held = second.parameters()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for mine, before, theirs in zip(second.parameters(), held, first.parameters(), strict=True):
        assert mine is before
        assert torch.equal(mine, theirs)
        assert mine.requires_grad


def test_saved_state_is_a_copy() -> None:
    relaxation = make()
    state = relaxation.state_dict()
    before = state["alpha"]["normal"].clone()
    scaled(relaxation)
    assert torch.equal(state["alpha"]["normal"], before)


@pytest.mark.parametrize("other", [make(RAGGED), make(edges=False)], ids=["other-lists", "no-beta"])
def test_state_of_other_space_is_rejected(other: SoftmaxRelaxation) -> None:
    mine = make()
    before = [p.detach().clone() for p in mine.parameters()]
    with pytest.raises(ValueError, match="another space"):
        mine.load_state_dict(other.state_dict())
    assert all(torch.equal(p, b) for p, b in zip(mine.parameters(), before, strict=True))

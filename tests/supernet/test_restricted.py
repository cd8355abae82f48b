"""Cells that compute some of their candidates: the same as all of them with weights of 0."""

import pytest
import torch
from torch import Tensor

from fastdarts.spaces import NASBENCH201, S0, Space
from fastdarts.supernet import CellWeights, NASBench201Supernet, Network, Supernet
from tests.support.backends import BACKENDS, by_darts_names

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {  # space, k, running statistics
    "darts": (S0, 1, True),
    "partial": (S0, 2, True),
    "nasbench201": (NASBENCH201, 1, True),
    "batch": (NASBENCH201, 1, False),
}


def make(space: Space, k: int, running: bool, backend: str) -> Network:
    torch.manual_seed(1)
    if space is NASBENCH201:
        mode = "running" if running else "batch"
        return NASBench201Supernet(space, C=4, cells_per_stage=1, partial_channels=k, batch_norm=mode, backend=backend).double()
    return Supernet(space, C=4, layers=3, partial_channels=k, backend=backend).double()


def taken(space: Space) -> dict[str, list[list[int]]]:
    """Of one edge everything, of one nothing, of the others one or two."""
    g = torch.Generator().manual_seed(4)
    kept = {}
    for kind in space.kinds:
        K = len(space.candidates(kind)[0])
        kept[kind] = [torch.randperm(K, generator=g)[: 1 + e % 2].tolist() for e in range(space.num_edges)]
        kept[kind][1], kept[kind][2] = list(range(K)), []
    return kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_restricted_cells_match_zero_weights(case: str, backend: str) -> None:
    space, k, running = CASES[case]
    whole, part = (make(space, k, running, backend) for _ in range(2))
    kept = taken(space)
    part.restrict(kept)
    rows: dict[str, Tensor] = {}
    for kind in space.kinds:
        mask = torch.tensor([[p in places for p in range(len(space.candidates(kind)[0]))] for places in kept[kind]])
        rows[kind] = torch.rand(mask.shape, dtype=torch.float64) * mask
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for training in (True, True, False):
        sides = []
        for network in (whole, part):
            network.train(training).zero_grad()
            ops = {kind: row.clone().requires_grad_() for kind, row in rows.items()}
            image = x.clone().requires_grad_()
            taps = network(image, {kind: CellWeights(o) for kind, o in ops.items()})
            sum((t * torch.arange(t.numel(), dtype=t.dtype).view(t.shape).cos()).sum() for t in taps).backward()
            grads = by_darts_names(network, {n: p.grad for n, p in network.named_parameters() if p.grad is not None})
            sides.append((taps, image.grad, {kind: o.grad * (rows[kind] > 0) for kind, o in ops.items()}, grads))
        for ours, theirs in zip(*sides, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-11)
        assert all(o.grad is not None for o in ops.values())
    before, after = whole.state_dict(), part.state_dict()
    moved = {n for n, t in after.items() if n.endswith("running_var") and not torch.equal(t, torch.ones_like(t))}
    for name, t in after.items():
        if "running" in name and (name in moved or name.replace("mean", "var") in moved):
            torch.testing.assert_close(t, before[name], rtol=1e-9, atol=1e-11)
    still = [n for n in after if n.endswith("running_var") and ("._ops." in n or ".edges." in n) and n not in moved]
    assert bool(still) == running
    part.restrict(None)
    part.load_state_dict(before)
    weights = {kind: CellWeights(torch.rand_like(row)) for kind, row in rows.items()}
    assert all(torch.equal(a, b) for a, b in zip(whole(x, weights), part(x, weights), strict=True))


def test_lists_of_different_lengths_are_restricted() -> None:
    """The op's rows are padded, the cell's too."""
    lists = (("none", "skip_connect", "sep_conv_3x3"), ("max_pool_3x3", "dil_conv_3x3"))
    space = Space("ragged", lists, lists, nodes=1)
    whole, part = (make(space, 1, True, "auto") for _ in range(2))
    part.restrict({kind: [[2], [0, 1]] for kind in space.kinds})
    rows = torch.tensor([[0.0, 0.0, 0.5], [0.25, 0.75, 9.0]], dtype=torch.float64)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    got, want = (network(x, {kind: CellWeights(rows) for kind in space.kinds}) for network in (part, whole))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)

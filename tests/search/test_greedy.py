"""SGAS: scores and decisions by hand, exactly frozen alpha, and a search that is continued."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.optim.optimizers import arch_optimizer
from fastdarts.search import GreedyEdges, Hooks, StableGreedyEdges, argmax_genotype
from fastdarts.search.fixed_rows import OPEN
from fastdarts.search.greedy import decision_epochs, scaled
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import NASBENCH201, S0, S1, S3, S5, Space
from fastdarts.spaces.genotype import Genotype
from tests.search.test_progressive import SPACE, searched, settings, timeless

pytestmark = pytest.mark.usefixtures("one_thread")

THREE = Space.uniform("three", ("none", "skip_connect", "sep_conv_3x3"), nodes=2)  # edges 0, 1 and 2, 3, 4


def make(rows: list[list[float]], cls: type[GreedyEdges] = GreedyEdges, **more: Any) -> GreedyEdges:
    """With these weights in either kind of cell."""
    relaxation = cls(THREE, dtype=torch.float64, **more)
    put(relaxation, rows)
    return relaxation


def put(relaxation: GreedyEdges, rows: list[list[float]]) -> None:
    with torch.no_grad():
        for alpha in relaxation.alpha.values():
            alpha.copy_(torch.tensor(rows, dtype=torch.float64).log())


def scores(relaxation: GreedyEdges) -> Tensor:
    P = relaxation._ops("normal").detach()
    return relaxation.scores("normal", P, shares(P))


def shares(P: Tensor) -> Tensor:
    return P * torch.tensor([0, 1, 1]) / P[:, 1:].sum(1, keepdim=True)


ROWS = [[0.5, 0.25, 0.25], [0.2, 0.4, 0.4], [0.4, 0.6 * 0.75, 0.6 * 0.25], [0.3, 0.7, 0.0], [0.8, 0.1, 0.1]]


def test_published_decision_epochs() -> None:
    assert decision_epochs(SearchSettings(epochs=50, begin=0), S0) == (10, 15, 20, 25, 30, 35, 40, 45)
    assert decision_epochs(SearchSettings(epochs=64, begin=0, sgas_warmup=9, sgas_interval=7), S0)[-1] == 59
    assert decision_epochs(SearchSettings(epochs=6, begin=0), S0) == (2, 3, 4, 5, 6)
    assert decision_epochs(SearchSettings(epochs=6, begin=3), S0) == (4, 5, 6)
    (line,) = GreedyEdges.plan(S0, SearchSettings(epochs=6, begin=0))
    assert line.startswith("warning: only 5 of 8 edges of each kind of cell are decided in 6 epochs")
    (line,) = GreedyEdges.plan(S0, SearchSettings(epochs=50, begin=0))
    assert line.endswith("are decided, after epochs 10, 15, 20, 25, 30, 35, 40, 45")


def test_scores_by_hand() -> None:
    """Importance 0.5, 0.8, 0.6, 0.7, 0.2; certainty 0, 0, 1 - H(3/4), 1, 0."""
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert scores(make(ROWS)).tolist() == pytest.approx([0, 0, (0.4 / 0.6) * (1 - entropy), (0.5 / 0.6), 0])
    assert scaled(torch.ones(3)).tolist() == [0, 0, 0]


def test_stability_by_hand() -> None:
    """Overlaps with two former epochs, of which only the fourth edge's p changed; without history there is none."""
    relaxation = make(ROWS, StableGreedyEdges)
    assert scores(relaxation).tolist() == [0.0] * 5
    for share in (0.5, 0.25):
        put(relaxation, [*ROWS[:3], [0.3, 0.7 * share, 0.7 * (1 - share)], ROWS[4]])
        relaxation.epoch_ended(1)
    put(relaxation, ROWS)
    stability = [1, 1, 1, (0.5 + 0.25) / 2, 1]
    third = (0.4 / 0.6) * (1 - (-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)))
    assert scores(relaxation).tolist() == pytest.approx([0, 0, third, 0, 0])  # the least stable one is scaled to 0
    assert [float(s) for s in scaled(torch.tensor(stability))] == [1, 1, 1, 0, 1]
    for _ in range(5):
        relaxation.epoch_ended(1)
    assert int(relaxation.seen) == 4
    assert torch.equal(relaxation.history["normal"][3], relaxation.history["normal"][0])


def test_decisions_prune_and_freeze() -> None:
    """The best open edge each time; a node's second one drops the others; ties go to the first."""
    relaxation = make(ROWS, decisions=(1, 2, 3, 4, 5))
    optimizer, decided = arch_optimizer(relaxation.parameters(), 0.1, weight_decay=1.0), relaxation.decided["normal"]
    seen, frozen = [], None
    for epoch in range(1, 6):
        relaxation.epoch_ended(epoch)
        seen.append(decided.tolist())
        weights = relaxation.weights()["normal"].ops
        (weights.sum(0) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        grad, moving = relaxation.alpha["normal"].grad, decided == OPEN
        assert grad[~moving].count_nonzero() == 0 and bool((grad[moving].abs().sum(1) > 0).all())
        before = relaxation.alpha["normal"].detach().clone()
        optimizer.step()
        assert not torch.equal(relaxation.alpha["normal"][~moving], before[~moving])  # by decay and momentum
        relaxation.alpha_stepped()
        after = relaxation.alpha["normal"].detach()
        assert torch.equal(after[~moving], before[~moving])
        assert frozen is None or torch.equal(after[3], frozen)
        frozen = after[3].clone()
        with torch.no_grad():
            for kind, alpha in relaxation.alpha.items():
                open_rows = (relaxation.decided[kind] == OPEN)[:, None]
                alpha.copy_(torch.where(open_rows, torch.tensor(ROWS, dtype=torch.float64).log(), alpha))
        optimizer.zero_grad()
    assert seen[0] == [OPEN, OPEN, OPEN, 1, OPEN]
    assert seen[1] == [OPEN, OPEN, 1, 1, 3]  # the second node is complete
    assert seen[2] == [1, OPEN, 1, 1, 3] and seen[3] == seen[4] == [1, 1, 1, 1, 3]
    ops = relaxation.weights()
    assert ops["normal"].ops.tolist() == [[0, 1, 0]] * 4 + [[0, 0, 0]]
    cell = argmax_genotype(THREE, ops)
    assert isinstance(cell, Genotype)
    assert cell.normal == (("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("skip_connect", 1))


@pytest.mark.parametrize(
    ("space", "changes", "says"),
    [
        (S5, {}, "space S5, normal edge 0 has max_pool_3x3, .*: SGAS compares none with at least two other candidates"),
        (S1, {}, "space S1, normal edge 0 has skip_connect, dil_conv_3x3: SGAS compares none"),
        (NASBENCH201, {}, "a cell of space nasbench201 keeps all its edges"),
        (S3, {"edge_normalization": True}, "--edge_normalization: SGAS decides edges by alpha alone"),
        (S0, {"progressive": True}, "--progressive: SGAS decides edges by alpha alone, in one stage"),
    ],
)
def test_unsuitable_searches_are_rejected(space: Space, changes: dict[str, Any], says: str) -> None:
    GreedyEdges.check(S3, SearchSettings(edge_normalization=False))
    with pytest.raises(ConfigError, match=says):
        GreedyEdges.check(space, SearchSettings(**{"edge_normalization": False} | changes))


@pytest.mark.parametrize("method", ["sgas-1", "sgas-2"])
def test_resume_between_decisions_is_bitwise_identical(method: str) -> None:
    s = settings(progressive=False, epochs=4, begin=0, sgas_warmup=0, sgas_interval=1)
    whole, states = searched(method, s), []
    want = timeless(list(whole.epochs(Hooks(lambda report: states.append(deepcopy(whole.state_dict()))))))
    one_hot = [sum(row.count(1.0) for row in record["ops"]["normal"]) for record in want]
    assert one_hot == [1, 2, 3, 4]
    assert int((whole.relaxation.decided["reduce"] == len(SPACE.reduce[0])).sum()) == 1  # of five edges
    for cell in whole.supernet.cells:  # four of five edges have an operation, the other one is lost
        assert sorted(len(edge.candidates) for edge in cell._ops._part.graph.edges) == [1] * 5
    for number in (3, 4):
        again = searched(method, s)
        again.load_state_dict(states[number])
        assert timeless(list(again.epochs())) == want[number // 2 :]
        assert torch.equal(again.relaxation.alpha["reduce"], whole.relaxation.alpha["reduce"])

"""How a cell is read out: cases made by hand, and an implementation of its own over many random weights."""

import random

import pytest
import torch
from torch import Tensor

from fastdarts.search import SoftmaxRelaxation, argmax_genotype
from fastdarts.spaces import KINDS, S0, Space
from fastdarts.supernet import CellWeights
from tests.support import naive

NAMES = naive.S0
WEAK = {"normal": [("max_pool_3x3", 0), ("max_pool_3x3", 1)] * 4, "reduce": [("max_pool_3x3", 0), ("max_pool_3x3", 1)] * 4}


def flat() -> dict[str, Tensor]:
    return {kind: torch.full((14, 8), 0.1, dtype=torch.float64) for kind in KINDS}


def genes(ops: dict[str, Tensor], edges: dict[str, Tensor] | None = None, space: Space = S0) -> dict[str, list]:
    genotype = argmax_genotype(space, {kind: CellWeights(ops[kind], edges[kind] if edges else None) for kind in KINDS})
    assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5)
    genotype.check()
    return {"normal": list(genotype.normal), "reduce": list(genotype.reduce)}


def test_equal_weights_select_first_edges_and_candidates() -> None:
    assert genes(flat()) == WEAK


def test_none_is_never_selected() -> None:
    ops = flat()
    ops["normal"][:, 0] = 100.0
    assert genes(ops) == WEAK
    ops["normal"][4, 7] = 0.11  # node 1's edge from state 2, against nones of 100
    assert genes(ops)["normal"] == [*WEAK["normal"][:2], ("dil_conv_5x5", 2), ("max_pool_3x3", 0), *WEAK["normal"][4:]]


def test_two_strongest_edges_per_node_in_order() -> None:
    ops = flat()
    for edge, name, value in (
        *((0, "sep_conv_3x3", 0.3), (1, "skip_connect", 0.5)),
        *((2, "avg_pool_3x3", 0.2), (3, "dil_conv_3x3", 0.4), (4, "sep_conv_5x5", 0.3)),
        *((5, "max_pool_3x3", 0.2), (6, "sep_conv_3x3", 0.3), (7, "sep_conv_3x3", 0.6), (8, "dil_conv_5x5", 0.7)),
        *((13, "skip_connect", 0.9), (11, "sep_conv_5x5", 0.8), (12, "sep_conv_3x3", 0.7)),
    ):
        ops["reduce"][edge, NAMES.index(name)] = value
    assert genes(ops) == {
        "normal": WEAK["normal"],
        "reduce": [
            *[("skip_connect", 1), ("sep_conv_3x3", 0)],
            *[("dil_conv_3x3", 1), ("sep_conv_5x5", 2)],
            *[("dil_conv_5x5", 3), ("sep_conv_3x3", 2)],
            *[("skip_connect", 4), ("sep_conv_5x5", 2)],
        ],
    }


def test_ties_select_earlier_edge_and_candidate() -> None:
    ops = flat()
    ops["normal"][11, [4, 6]] = 0.5
    ops["normal"][13, [3, 5]] = 0.5
    ops["normal"][10, 7] = 0.5
    assert genes(ops)["normal"][6:] == [("dil_conv_5x5", 1), ("sep_conv_3x3", 2)]


def test_beta_scales_edges() -> None:
    """The strongest candidate on a weak edge loses; within an edge nothing changes."""
    ops, edges = flat(), {kind: torch.full((14,), 0.2, dtype=torch.float64) for kind in KINDS}
    ops["normal"][2, 4], ops["normal"][3, 5], ops["normal"][4, 6] = 0.9, 0.5, 0.4
    assert genes(ops, edges)["normal"][2:4] == [("sep_conv_3x3", 0), ("sep_conv_5x5", 1)]
    edges["normal"][2:5] = torch.tensor([0.1, 0.3, 0.6])  # products 0.09, 0.15, 0.24
    assert genes(ops, edges)["normal"][2:4] == [("dil_conv_3x3", 2), ("sep_conv_5x5", 1)]
    assert genes(ops)["normal"][2:4] == [("sep_conv_3x3", 0), ("sep_conv_5x5", 1)]


def test_negative_weights_are_ordered() -> None:
    ops = {kind: -1.0 - torch.arange(14 * 8, dtype=torch.float64).reshape(14, 8) for kind in KINDS}
    ops["normal"][1] = -0.5
    assert genes(ops)["normal"][:2] == [("max_pool_3x3", 1), ("max_pool_3x3", 0)]


@pytest.mark.parametrize("beta", [False, True])
def test_selection_matches_independent_implementation(beta: bool) -> None:
    """200 pairs of cells, the weights of half of them drawn from six values so that ties abound."""
    g = torch.Generator().manual_seed(0)
    for case in range(200):
        ops = {kind: torch.rand(14, 8, generator=g, dtype=torch.float64) for kind in KINDS}
        if case % 2:
            ops = {kind: torch.ceil(6 * t) / 8 for kind, t in ops.items()}
        edges = {kind: torch.ceil(2 * torch.rand(14, generator=g)).double() / 2 for kind in KINDS} if beta else None
        want = {}
        for kind in KINDS:
            scale = edges[kind].tolist() if beta else [1.0] * 14
            rows = [[w * s for w in row] for row, s in zip(ops[kind].tolist(), scale, strict=True)]
            want[kind] = naive.derive(rows, [NAMES] * 14)
        assert genes(ops, edges) == want


def test_candidate_lists_may_differ_by_edge() -> None:
    """Values in the padding of a shorter row are ignored."""
    pick = random.Random(3)
    lists = tuple(tuple(pick.sample(NAMES[1:], pick.randrange(1, 7))) for _ in range(14))
    space = Space("ragged", lists, lists[::-1])
    g = torch.Generator().manual_seed(1)
    for _ in range(50):
        ops = {kind: torch.rand(14, 7, generator=g, dtype=torch.float64) for kind in KINDS}
        want = {}
        for kind in KINDS:
            names = space.candidates(kind)
            for e, own in enumerate(names):
                ops[kind][e, len(own) :] = 5.0
            rows = [row[: len(own)] for row, own in zip(ops[kind].tolist(), names, strict=True)]
            want[kind] = naive.derive(rows, names)
        assert genes(ops, space=space) == want


def test_genotype_from_alpha() -> None:
    """Softmax and edge normalisation in between: beta's softmax is within a node, alpha's within an edge."""
    relaxation = SoftmaxRelaxation(S0, edge_normalization=True, seed=5, dtype=torch.float64)
    with torch.no_grad():
        for p in relaxation.parameters():
            p.mul_(1e3)
    net = naive.Net(C=4, layers=3)
    want = {}
    for kind in KINDS:
        rows = naive.edge_rows(relaxation.alpha[kind].detach(), net, kind)
        beta = naive.edge_betas(relaxation.beta[kind].detach())
        want[kind] = naive.derive([(r * b).tolist() for r, b in zip(rows, beta, strict=True)], [NAMES] * 14)
    weights = relaxation.weights()
    assert genes({k: w.ops for k, w in weights.items()}, {k: w.edges for k, w in weights.items()}) == want

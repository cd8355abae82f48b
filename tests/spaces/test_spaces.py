"""Names, edges and lists of the search spaces."""

import pytest

from fastdarts.spaces import CANDIDATES, KINDS, NASBENCH201, S0, S5, SKELETONS, Space
from fastdarts.spaces.candidates import known, of_genotypes


def test_s0_follows_darts_order() -> None:
    """The index of a candidate is part of every checkpoint."""
    names = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")
    names += ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
    assert S0.name == "S0"
    assert S0.normal == S0.reduce == (names,) * 14
    assert [S0.candidates(kind) for kind in KINDS] == [S0.normal, S0.reduce]
    assert KINDS == ("normal", "reduce")


def test_s5_is_s0_without_none() -> None:
    assert S5.name == "S5" and S5.normal == S5.reduce
    assert S5.normal == (("max_pool_3x3", "avg_pool_3x3", "skip_connect", *S0.normal[0][4:]),) * 14


def test_edges_are_numbered_by_node() -> None:
    assert S0.num_edges == 14
    assert [list(S0.edges_of_node(i)) for i in range(4)] == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12, 13],
    ]


@pytest.mark.parametrize(("nodes", "edges"), [(1, 2), (2, 5), (3, 9), (5, 20)])
def test_other_node_counts(nodes: int, edges: int) -> None:
    space = Space.uniform("small", ("skip_connect",), nodes)
    assert space.num_edges == len(space.normal) == edges
    assert [e for i in range(nodes) for e in space.edges_of_node(i)] == list(range(edges))


def test_families_of_candidates() -> None:
    families = {name: c.family for name, c in CANDIDATES.items()}
    assert families == {
        "none": "none",
        "max_pool_3x3": "pool",
        "avg_pool_3x3": "pool",
        "skip_connect": "skip",
        "sep_conv_3x3": "conv",
        "sep_conv_5x5": "conv",
        "dil_conv_3x3": "conv",
        "dil_conv_5x5": "conv",
        "nor_conv_1x1": "conv",
        "nor_conv_3x3": "conv",
        "noise": "noise",
        "sep_conv_7x7": "conv",
        "conv_7x1_1x7": "conv",
    }
    assert all(c.name == name for name, c in CANDIDATES.items())


def test_skeletons_have_their_candidates() -> None:
    """Average pooling is in both, with a norm after it in DARTS alone."""
    assert SKELETONS == ("darts", "nasbench201")
    assert known("darts") == [*S0.normal[0], "noise"]
    assert sorted(known("nasbench201")) == sorted(NASBENCH201.normal[0])
    assert of_genotypes() == [*known("darts"), "sep_conv_7x7", "conv_7x1_1x7"]


def test_nas_bench_201_has_one_kind_of_cell() -> None:
    assert (NASBENCH201.kinds, NASBENCH201.num_edges, NASBENCH201.reduce) == (("normal",), 6, ())
    assert [list(NASBENCH201.edges_of_node(i)) for i in range(3)] == [[0], [1, 2], [3, 4, 5]]
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    assert NASBENCH201.normal == (names,) * 6


GOOD = ("skip_connect", "none")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            ("skip_connect", "conv_9x9"),
            "reduce edge 5.*conv_9x9.*known are.*sep_conv_3x3.*register custom ones first",
        ),
        ((), "reduce edge 5.*empty"),
        (("skip_connect", "skip_connect"), "reduce edge 5.*repeated"),
        (("none",), "reduce edge 5.*besides none"),
    ],
)
def test_invalid_candidate_lists_are_rejected(bad: tuple[str, ...], message: str) -> None:
    lists = [GOOD] * 14
    lists[5] = bad
    with pytest.raises(ValueError, match=message):
        Space("mine", (GOOD,) * 14, tuple(lists))


@pytest.mark.parametrize("count", [0, 13, 15])
def test_list_per_edge(count: int) -> None:
    with pytest.raises(ValueError, match=f"normal cell has 14 edges.*{count}"):
        Space("mine", (GOOD,) * count, (GOOD,) * 14)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"nodes": 0}, "2 inputs and at least one node, got 2 and 0"),
        ({"inputs": 1}, "cell of darts has 2 inputs.*got 1 and 4"),
        ({"skeleton": "nasbench201"}, "cell of nasbench201 has 1 inputs.*got 2 and 4"),
        ({"skeleton": "nasbench201", "inputs": 1, "nodes": 3}, "no reduction cell"),
    ],
)
def test_invalid_cells_are_rejected(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space("mine", (GOOD,) * 14, (GOOD,) * 14, **sizes)


def test_candidate_of_other_skeleton_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"normal edge 0: unknown nor_conv_3x3; known are none.*dil_conv_5x5"):
        Space.uniform("mine", ("skip_connect", "nor_conv_3x3"))
    lists = (GOOD, GOOD, ("sep_conv_3x3",), GOOD, GOOD, GOOD)
    with pytest.raises(ValueError, match=r"normal edge 2: unknown sep_conv_3x3; known are .*nor_conv_3x3"):
        Space("mine", lists, nodes=3, inputs=1, skeleton="nasbench201")

"""R-DARTS' spaces: candidates, their order, and cells that its searches are known to have found in S1."""

import pytest

from fastdarts.spaces import S0, S1, S2, S3, S4, Kind, Space

LETTERS = {
    "M": "max_pool_3x3",
    "A": "avg_pool_3x3",
    "i": "skip_connect",
    "s": "sep_conv_3x3",
    "d": "dil_conv_3x3",
    "D": "dil_conv_5x5",
}


@pytest.mark.parametrize(
    ("kind", "edges"),
    [
        ("normal", "id iD  iD is id  Mi is is id  is Mi id dD dD"),
        ("reduce", "MA Md  MA MA iD  MA Ms id iD  MA MA iD iD iD"),
    ],
)
def test_s1_has_two_candidates_per_edge(kind: Kind, edges: str) -> None:
    assert S1.candidates(kind) == tuple(tuple(LETTERS[letter] for letter in edge) for edge in edges.split())


# What R-DARTS' authors found on CIFAR-10 in S1: for each node two (operation, earlier state).
FOUND: list[tuple[Kind, str]] = [
    ("normal", "i1 d0  i2 i0  i0 i2  i2 i1"),
    ("normal", "i0 i1  i1 i2  i2 i1  i2 d4"),
    ("reduce", "M1 M0  i2 M1  i2 M0  M0 M1"),
    ("reduce", "M1 M0  M0 i2  s1 M0  i3 M0"),
    ("reduce", "M1 M0  M0 i2  M1 M0  D4 M0"),
]


@pytest.mark.parametrize(("kind", "cell"), FOUND)
def test_s1_contains_published_cells(kind: Kind, cell: str) -> None:
    genes = cell.split()
    for node in range(4):
        for letter, state in genes[2 * node : 2 * node + 2]:
            edge = S1.edges_of_node(node)[int(state)]
            assert LETTERS[letter] in S1.candidates(kind)[edge], (kind, edge)


def test_s2_to_s4_have_same_candidates_on_all_edges() -> None:
    assert S2.normal == S2.reduce == (("skip_connect", "sep_conv_3x3"),) * 14
    assert S3.normal == S3.reduce == (("none", "skip_connect", "sep_conv_3x3"),) * 14
    assert S4.normal == S4.reduce == (("noise", "sep_conv_3x3"),) * 14
    assert [space.name for space in (S1, S2, S3, S4)] == ["S1", "S2", "S3", "S4"]


@pytest.mark.parametrize("space", [S1, S2, S3], ids=lambda space: space.name)
def test_candidates_follow_order_of_s0(space: Space) -> None:
    order = S0.normal[0]
    for kind in space.kinds:
        assert all(list(names) == sorted(names, key=order.index) for names in space.candidates(kind))

"""NAS-Bench-201's cells as text, nested genotype, number and JSON."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fastdarts.spaces import NASBENCH201, Architecture
from fastdarts.spaces.nasbench201 import EDGES, ArchitectureError

TEXT = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
OPS = ("avg_pool_3x3", "nor_conv_1x1", "skip_connect", "none", "nor_conv_3x3", "skip_connect")
NODES = (
    (("avg_pool_3x3", 0),),
    (("nor_conv_1x1", 0), ("skip_connect", 1)),
    (("none", 0), ("nor_conv_3x3", 1), ("skip_connect", 2)),
)


def test_forms_of_one_cell_are_equal() -> None:
    cell = Architecture(OPS)
    assert EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert str(cell) == TEXT
    assert Architecture.from_text(f" {TEXT}\n") == cell
    assert cell.nodes == NODES
    assert Architecture.from_nodes(NODES) == cell
    assert cell.number == 4 * 5**5 + 2 * 5**4 + 1 * 5**3 + 0 * 5**2 + 3 * 5 + 1
    assert cell.operations("normal") == list(OPS)
    assert cell.operations("reduce") == []


def test_nested_lists_in_any_order_within_node() -> None:
    nodes = [[list(pair) for pair in reversed(node)] for node in NODES]
    assert Architecture.from_nodes(nodes).ops == OPS


def test_numbers_and_cells_correspond() -> None:
    cells = [Architecture.from_number(number) for number in range(15625)]
    assert [cell.number for cell in cells] == list(range(15625))
    texts = [str(cell) for cell in cells]
    assert len(set(texts)) == 15625
    assert [Architecture.from_text(text) for text in texts] == cells
    assert [Architecture.from_nodes(cell.nodes) for cell in cells] == cells
    assert cells[0].ops == ("none",) * 6
    assert cells[1].ops == (*("none",) * 5, "skip_connect")
    assert cells[-1].ops == ("avg_pool_3x3",) * 6


def test_every_text_of_benchmark_round_trips(shared_data: Path) -> None:
    with open(shared_data / "nasbench201.csv", encoding="utf-8", newline="") as file:
        texts = [row["arch_str"] for row in csv.DictReader(file)]
    cells = [Architecture.from_text(text) for text in texts]
    assert [str(cell) for cell in cells] == texts
    assert sorted(cell.number for cell in cells) == list(range(15625))
    assert [Architecture.from_number(cell.number) for cell in cells] == cells


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|skip_connect~0|",
        TEXT.replace("skip_connect~1", "skip_connect~0"),
        TEXT.replace("~2|", "~2|skip_connect~3|"),
        TEXT.replace("|+|", "+"),
        "Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])",
    ],
)
def test_invalid_texts_are_rejected(text: str) -> None:
    with pytest.raises(ArchitectureError, match=r"not \|op~0\|"):
        Architecture.from_text(text)


def test_operation_of_other_space_is_rejected() -> None:
    with pytest.raises(ArchitectureError, match=r"unknown sep_conv_3x3; NAS-Bench-201 has none, avg_pool_3x3, skip_connect"):
        Architecture.from_text(TEXT.replace("nor_conv_3x3", "sep_conv_3x3"))
    with pytest.raises(ArchitectureError, match="unknown 7"):
        Architecture((*OPS[:5], 7))  # type: ignore[arg-type]
    with pytest.raises(ArchitectureError, match="6 edges, got 5"):
        Architecture(OPS[:5])


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (NODES[:2], "three nodes"),
        ((*NODES, NODES[2]), "three nodes"),
        ((NODES[0], (*NODES[1], ("none", 1)), NODES[2]), "three nodes"),
        (((("skip_connect", 1),), *NODES[1:]), "three nodes"),
        ((("skip_connect", 0), *NODES[1:]), "pairs"),
        (None, "pairs"),
    ],
)
def test_invalid_nodes_are_rejected(nodes: Any, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_nodes(nodes)


@pytest.mark.parametrize("number", [-1, 15625])
def test_number_out_of_range_is_rejected(number: int) -> None:
    with pytest.raises(ArchitectureError, match=f"no cell {number}"):
        Architecture.from_number(number)


def test_json_round_trip() -> None:
    cell = Architecture(OPS)
    text = cell.to_json(epoch=3)
    assert json.loads(text) == {"ops": list(OPS), "text": TEXT, "epoch": 3}
    assert Architecture.from_json(text) == cell
    for wrong in ("{", "[]", "{}", '{"ops": 3}'):
        with pytest.raises(ArchitectureError, match="not the JSON of a cell"):
            Architecture.from_json(wrong)


def test_candidate_order_matches_digits() -> None:
    for digit, name in enumerate(NASBENCH201.normal[0]):
        assert Architecture.from_number(digit).ops[-1] == name

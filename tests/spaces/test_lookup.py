"""Look-up of true accuracies: a table file, its refusals, ranks, and the shared table where it is."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdarts.spaces import Architecture
from fastdarts.spaces.lookup import ACCURACIES, MORE, Table, TableError
from fastdarts.spaces.nats import read

HEADER = ["index", "arch_str", *ACCURACIES]
Rows = list[list[str]]


def accuracy(number: int, column: str) -> float:
    """100 for the all-pool cell alone, then pairs of equals: 99.99, 99.99, 99.98, ..., shifted by the column."""
    if column in ACCURACIES and number == 15624:
        return 100.0
    return 99.99 - (15623 - number) // 2 / 1000 - HEADER.index(column)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """A table of made-up accuracies, in an order of its own: index 0 is cell number 7."""
    return [
        [str(index), str(Architecture.from_number(number)), *(f"{accuracy(number, c):.4f}" for c in ACCURACIES)]
        for index, number in enumerate((index + 7) % 15625 for index in range(15625))
    ]


def write(path: Path, rows: Rows, header: list[str] = HEADER) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def table(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Read from lines in a mixed order."""
    mixed = random.Random(0).sample(rows, len(rows))
    return Table.read(write(tmp_path_factory.mktemp("table") / "table.csv", mixed))


def test_accuracies_and_index(table: Table) -> None:
    cell = Architecture.from_number(100)
    assert table.columns == ACCURACIES
    assert table.accuracies(cell) == {c: pytest.approx(accuracy(100, c), abs=1e-4) for c in ACCURACIES}
    assert table.index(cell) == 93
    assert table.architecture(93) == cell
    assert table.architecture(table.index(Architecture.from_number(0))).number == 0
    for index in (-1, 15625):
        with pytest.raises(TableError, match=f"no cell {index}; cells are 0 to 15624"):
            table.architecture(index)


def test_rank_counts_better_cells(table: Table) -> None:
    ranks = [table.rank(Architecture.from_number(n), "cifar10_test") for n in (15624, 15623, 15622, 15621, 15620, 1, 0)]
    assert ranks == [(1, 15625), (2, 15625), (2, 15625), (4, 15625), (4, 15625), (15624, 15625), (15624, 15625)]
    with pytest.raises(TableError, match="no column cifar10; known are cifar10_valid, cifar10_test"):
        table.rank(Architecture.from_number(0), "cifar10")


def test_answers_are_copies(table: Table) -> None:
    cell = Architecture.from_number(3)
    before = table.accuracies(cell)
    table.accuracies(cell).clear()
    assert table.accuracies(cell) == before


def test_further_columns_are_read(rows: Rows, tmp_path: Path) -> None:
    header = ["params", *HEADER, "cifar10_test_12ep"]
    path = write(tmp_path / "table.csv", [["9", *row, "12.5"] for row in rows], header)
    table = read(path)
    assert isinstance(table, Table)
    assert table.columns == (*ACCURACIES, "cifar10_test_12ep")
    assert table.accuracies(table.architecture(5))["cifar10_test_12ep"] == 12.5
    assert table.rank(table.architecture(5), "cifar10_test_12ep") == (1, 15625)


def first(rows: Rows, place: int, column: int, value: str) -> Rows:
    """The first rows, with one field changed."""
    changed = [list(row) for row in rows[:20]]
    changed[place][column] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:100], "100 of NAS-Bench-201's 15625 cells, the table is incomplete"),
        (lambda rows: [], "0 of NAS-Bench-201's 15625 cells"),
        (lambda rows: [*rows[:50], rows[50][:4]], "line 52: not as many fields"),
        (lambda rows: [*rows[:50], [*rows[50], "1"]], "line 52: not as many fields"),
        (lambda rows: rows[:10] + rows[11:], "index 10 is missing or repeated"),
        (lambda rows: rows[:10] + rows[9:], "index 10 is missing or repeated"),
        (lambda rows: first(rows, 4, 1, rows[3][1]), "is both cell 3 and cell 4"),
        (lambda rows: first(rows, 4, 1, "64:64:64:64:64"), "not a table of NAS-Bench-201: cell 4: not "),
        (lambda rows: first(rows, 4, 1, rows[4][1].replace("skip_connect", "sep_conv_3x3")), "cell 4: unknown sep_conv_3x3"),
        (lambda rows: first(rows, 4, 0, "four"), "line 6: invalid literal.*four"),
        (lambda rows: first(rows, 4, 3, ""), "line 6: could not convert"),
        (lambda rows: first(rows, 4, 3, "nan"), "line 6: cifar10_test is a percentage, got nan"),
        (lambda rows: first(rows, 4, 2, "100.01"), "line 6: cifar10_valid is a percentage, got 100.01"),
        (lambda rows: first(rows, 4, 2, "-1"), "line 6: cifar10_valid is a percentage, got -1"),
    ],
)
def test_invalid_tables_are_rejected(rows: Rows, tmp_path: Path, change: Callable[[Rows], Rows], message: str) -> None:
    with pytest.raises(TableError, match=f"table.csv.*{message}"):
        Table.read(write(tmp_path / "table.csv", change(rows)))


def test_foreign_csv_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "table.csv", [["1", "2"]], ["index", "accuracy"])
    with pytest.raises(TableError, match=r"not a table of NAS-Bench-201, it lacks arch_str, cifar10_valid.*needed are index"):
        Table.read(path)
    path.write_text("")
    with pytest.raises(TableError, match="it lacks index, arch_str"):
        Table.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match=r"table.csv cannot be read: .*utf-8"):
        Table.read(path)
    with pytest.raises(TableError, match=r"none.csv cannot be read: .*No such file"):
        Table.read(tmp_path / "none.csv")


def test_known_facts_of_benchmark(shared_data: Path) -> None:
    """The optima and the all-skip cell that papers quote, to two digits."""
    table = Table.read(shared_data / "nasbench201.csv")
    assert table.columns == (*ACCURACIES, *MORE)
    cells = [table.architecture(index) for index in range(15625)]
    for column, best in {"cifar10_test": 94.37, "cifar100_test": 73.51, "imagenet16_test": 47.31}.items():
        top = max(cells, key=lambda cell: table.accuracies(cell)[column])
        assert table.accuracies(top)[column] == pytest.approx(best, abs=0.005)
        assert table.rank(top, column) == (1, 15625)
    skips = Architecture(("skip_connect",) * 6)
    assert table.accuracies(skips)["cifar10_test"] == pytest.approx(54.30, abs=0.005)
    assert [table.index(cell) for cell in cells] == list(range(15625))
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
    assert table.index(Architecture.from_text(text)) == 1

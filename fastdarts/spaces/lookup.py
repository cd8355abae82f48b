"""Accuracies of all NAS-Bench-201 cells, by NAS-Bench-201 and NATS-Bench: from a table file or the files of `nats_bench`.

Accuracies are percentages, means over the benchmark's training runs. `cifar10_valid` is of training on half of CIFAR-10's
training images, `cifar10_test` of training on all of them; `_12ep` after 12 epochs of training, else after 200.
"""

import csv
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastdarts.spaces.nasbench201 import EDGES, PRIMITIVES, Architecture, ArchitectureError

CELLS = len(PRIMITIVES) ** len(EDGES)  # 15,625
ACCURACIES = ("cifar10_valid", "cifar10_test", "cifar100_valid", "cifar100_test", "imagenet16_valid", "imagenet16_test")
MORE = ("cifar10_test_halftrain", *(f"{column}_12ep" for column in ACCURACIES))  # optional columns of a table


class TableError(ValueError):
    """Not a table of NAS-Bench-201, a damaged one, or a missing column; the message says which."""


class Lookup(ABC):
    """Results of all cells, by the benchmark's own index, which differs from Architecture.number.

    columns  its accuracies: ACCURACIES, and those of MORE that the file has
    """

    def __init__(self, source: str, texts: Iterable[str], columns: Sequence[str]) -> None:
        """texts: the cells in the benchmark's order. Raises TableError unless they are NAS-Bench-201's, each once."""
        self.source, self.columns = source, tuple(columns)
        self._cells: list[Architecture] = []
        self._index: dict[Architecture, int] = {}
        self._sorted: dict[str, list[float]] = {}
        for index, text in enumerate(texts):
            try:
                cell = Architecture.from_text(text)
            except ArchitectureError as error:
                raise TableError(f"{source}: not a table of NAS-Bench-201: cell {index}: {error}") from error
            if cell in self._index:
                raise TableError(f"{source}: {cell} is both cell {self._index[cell]} and cell {index}")
            self._cells.append(cell)
            self._index[cell] = index
        if len(self._cells) != CELLS:
            raise TableError(f"{source}: {len(self._cells)} of NAS-Bench-201's {CELLS} cells, the table is incomplete")

    @abstractmethod
    def _read(self, index: int) -> dict[str, float]:
        """Return every column, in percent."""

    def accuracies(self, architecture: Architecture) -> dict[str, float]:
        """Return every column, in percent. Raises TableError if the benchmark's files lack it."""
        return self._read(self.index(architecture))

    def index(self, architecture: Architecture) -> int:
        """Return the benchmark's own index, 0 .. 15624. Raises TableError for a cell with a custom candidate."""
        if architecture not in self._index:
            raise TableError(f"{self.source}: {architecture} is not a cell of NAS-Bench-201")
        return self._index[architecture]

    def architecture(self, index: int) -> Architecture:
        """Return the cell of the benchmark's own index. Raises TableError."""
        if not 0 <= index < CELLS:
            raise TableError(f"{self.source}: no cell {index}; cells are 0 to {CELLS - 1}")
        return self._cells[index]

    def rank(self, architecture: Architecture, column: str) -> tuple[int, int]:
        """Return the rank by the accuracy of a column, and the number of cells: 1 is the best, ties share the better rank.

        Raises TableError for a missing column.
        """
        if column not in self.columns:
            raise TableError(f"{self.source}: no column {column}; known are {', '.join(self.columns)}")
        if not self._sorted:
            rows = [self._read(index) for index in range(CELLS)]
            self._sorted = {name: sorted(row[name] for row in rows) for name in self.columns}
        values = self._sorted[column]
        return 1 + CELLS - bisect_right(values, self.accuracies(architecture)[column]), CELLS


class Table(Lookup):
    """A CSV file with the columns index, arch_str and ACCURACIES, in any order; others are allowed."""

    def __init__(self, source: str, texts: Iterable[str], rows: Sequence[Mapping[str, float]]) -> None:
        super().__init__(source, texts, tuple(rows[0]) if rows else ACCURACIES)
        self._rows = [dict(row) for row in rows]

    @staticmethod
    def read(path: str | Path) -> "Table":
        """Read a table. Raises TableError for a file that is unreadable, of another space, truncated or has a wrong number."""
        path = Path(path)
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                columns = _columns(path, reader.fieldnames or ())
                rows = [_row(f"{path}, line {reader.line_num}", row, columns) for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise TableError(f"{path} cannot be read: {error}") from error
        rows.sort(key=lambda row: row[0])
        if wrong := [place for place, row in enumerate(rows) if row[0] != place]:
            raise TableError(f"{path}: expected each index from 0 to {CELLS - 1} once, index {wrong[0]} is missing or repeated")
        return Table(str(path), [text for _, text, _ in rows], [values for _, _, values in rows])

    def _read(self, index: int) -> dict[str, float]:
        return dict(self._rows[index])


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """Return the accuracy columns of a table."""
    needed = ("index", "arch_str", *ACCURACIES)
    if missing := [name for name in needed if name not in header]:
        raise TableError(f"{path}: not a table of NAS-Bench-201, it lacks {', '.join(missing)}; needed are {', '.join(needed)}")
    return [*ACCURACIES, *(name for name in MORE if name in header)]


def _row(where: str, row: Mapping[str, str], columns: Sequence[str]) -> tuple[int, str, dict[str, float]]:
    """Parse a line into the index, the cell's text and the accuracies."""
    if None in row or None in row.values():
        raise TableError(f"{where}: not as many fields as in the first line")
    try:
        index, values = int(row["index"]), {name: float(row[name]) for name in columns}
    except ValueError as error:
        raise TableError(f"{where}: {error}") from error
    for name, value in values.items():
        if not (math.isfinite(value) and 0 <= value <= 100):
            raise TableError(f"{where}: {name} is a percentage, got {row[name]}")
    return index, row["arch_str"], values

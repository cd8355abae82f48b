"""What came of the runs of a sweep: the figures of each, and their mean and spread over the seeds."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fastdarts.report.facts import number
from fastdarts.report.run import chosen_of, valid_of

Row = dict[str, Any]
REPEATS = "seed"  # the axis that is not a setting of interest: runs that differ in it alone are repetitions
OF_EPOCH = ("train_loss", "alpha_loss", "valid", "cells", "hessian")  # of an epoch's record
SHOWN = ("valid.", "cells.", "benchmark.", "minutes")  # what the table shows, by how its name begins
LEFT_OUT = ("valid.baseline", ".skip_minus_conv")  # and by how it ends


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (the divisor is n - 1; None of one value) of n values."""

    mean: float
    deviation: float | None
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """None of no values."""
        if not values:
            return None
        return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Group:
    """The finished runs that differ in the seed alone: their values on the other axes, their number, the figures."""

    values: dict[str, Any]
    n: int
    figures: dict[str, Spread]


def epochs_of(folder: Path) -> list[Row]:
    """The records of a run's finished epochs, as far as metrics.jsonl can be read."""
    return [record for record in _lines(folder / "metrics.jsonl") if record.get("kind") == "epoch"]


def figures(folder: Path, finished: bool) -> Row:
    """What a run folder holds for the row of its run: "settings", and of a finished run "genotype" and flat figures.

    The figures of the epoch whose genotype it is, the last one but for an early stop (`valid.loss`, of the last evaluation
    until then, `cells.normal.skips`, ...; skips as alpha has them, before P-DARTS' limit), the `minutes` of all its epochs,
    and what was looked up (`benchmark.*`, from genotype.json). Those that are not finite are left out.
    """
    row: Row = {"settings": _object(folder / "settings.json").get("settings")}
    epochs = epochs_of(folder)
    if not finished or not epochs:
        return row
    record, genotype = chosen_of(epochs), _object(folder / "genotype.json")
    found = {name: record.get(name) for name in OF_EPOCH}
    found |= {"valid": valid_of(epochs), "benchmark": genotype.get("benchmark")}
    seconds = sum(line.get("seconds") or 0.0 for line in _lines(folder / "timing.jsonl"))
    row |= {"genotype": genotype.get("text") or record.get("genotype"), "epoch": record.get("epoch")}
    return row | dict(_flat("", found)) | {"minutes": seconds / 60}


def aggregate(rows: Iterable[Row], axes: Sequence[str], over: str | None = REPEATS) -> list[Group]:
    """The finished runs by their values on all axes but `over`, in ascending order."""
    others = [axis for axis in axes if axis != over]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["state"] == "finished":
            groups.setdefault(tuple(row[axis] for axis in others), []).append(row)
    return [
        Group(dict(zip(others, values, strict=True)), len(groups[values]), _spreads(groups[values]))
        for values in sorted(groups, key=lambda values: [_order(value) for value in values])
    ]


def figure_names(rows: Iterable[Row]) -> list[str]:
    """The figures that some run has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if _is_figure(name)))


def markdown(groups: Sequence[Group], metric: str) -> str:
    """The table, a line for each group; the metric's column is there whatever else is."""
    names = dict.fromkeys([metric] + [name for group in groups for name in group.figures if _shown(name)])
    axes = list(groups[0].values) if groups else []
    head = [*axes, "n", *names]
    lines = [[*map(str, group.values.values()), str(group.n), *(told(group, name) for name in names)] for group in groups]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)) + "\n"


def told(group: Group, name: str) -> str:
    """`mean ± deviation` of a figure, and of how many runs if not of all."""
    spread = group.figures.get(name)
    if spread is None:
        return "—"
    deviation = "" if spread.deviation is None else f" ± {number(float(spread.deviation))}"
    count = "" if spread.n == group.n else f" (of {spread.n})"
    return f"{number(float(spread.mean))}{deviation}{count}"


def comma_separated(rows: Sequence[Row]) -> str:
    """The rows as CSV, without the settings that are not swept."""
    names = dict.fromkeys(name for row in rows for name in row if name != "settings")
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _spreads(rows: Sequence[Row]) -> dict[str, Spread]:
    values = {name: [row[name] for row in rows if name in row] for name in figure_names(rows)}
    return {name: spread for name, found in values.items() if (spread := Spread.of(found)) is not None}


def _is_figure(name: str) -> bool:
    return name.partition(".")[0] in {*OF_EPOCH, "benchmark", "minutes"}


def _shown(name: str) -> bool:
    return name.startswith(SHOWN) and not name.endswith(LEFT_OUT)


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, before texts."""
    return (True, value) if isinstance(value, str) else (False, value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The finite numbers inside dicts, by their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, value


def _lines(path: Path) -> list[Row]:
    """The objects of a file of JSON lines; a line that a killed process left half written is passed over."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [record for line in lines if (record := _parsed(line))]


def _object(path: Path) -> Row:
    return _parsed(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}


def _parsed(text: str) -> Row:
    """A JSON object, {} for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

"""Results of a sweep: figures of each run, and their mean and spread over the seeds."""

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
REPEATS = "seed"  # axis of repetitions, aggregated over
OF_EPOCH = ("train_loss", "alpha_loss", "valid", "cells", "hessian")  # keys of an epoch's record
SHOWN = ("valid.", "cells.", "benchmark.", "minutes")  # prefixes of the figures in the table
LEFT_OUT = ("valid.baseline", ".skip_minus_conv")  # excluded suffixes


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1; None for one value) of n values."""

    mean: float
    deviation: float | None
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """Compute the spread; None without values."""
        if not values:
            return None
        return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in the seed: values on the other axes, number of runs, figures."""

    values: dict[str, Any]
    n: int
    figures: dict[str, Spread]


def epochs_of(folder: Path) -> list[Row]:
    """Read the records of a run's finished epochs, as far as metrics.jsonl is readable."""
    return [record for record in _lines(folder / "metrics.jsonl") if record.get("kind") == "epoch"]


def figures(folder: Path, finished: bool) -> Row:
    """Return a run folder's entries for the row of its run: "settings" and, if finished, "genotype" and flat figures.

    The figures are those of the genotype's epoch, the last one except after an early stop (`valid.loss`, of the latest
    evaluation up to it, `cells.normal.skips`, ...; skips according to alpha, before P-DARTS' limit), the `minutes` of all
    epochs, and benchmark results (`benchmark.*`, from genotype.json). Non-finite figures are omitted.
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
    """Group the finished runs by their values on all axes except `over`, in ascending order."""
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
    """Return the names of all runs' figures, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if _is_figure(name)))


def markdown(groups: Sequence[Group], metric: str) -> str:
    """Format the table, a line per group; always includes the metric's column."""
    names = dict.fromkeys([metric] + [name for group in groups for name in group.figures if _shown(name)])
    axes = list(groups[0].values) if groups else []
    head = [*axes, "n", *names]
    lines = [[*map(str, group.values.values()), str(group.n), *(formatted(group, name) for name in names)] for group in groups]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)) + "\n"


def formatted(group: Group, name: str) -> str:
    """Format a figure as `mean ± deviation`, with the number of runs if not all have it."""
    spread = group.figures.get(name)
    if spread is None:
        return "—"
    deviation = "" if spread.deviation is None else f" ± {number(float(spread.deviation))}"
    count = "" if spread.n == group.n else f" (of {spread.n})"
    return f"{number(float(spread.mean))}{deviation}{count}"


def comma_separated(rows: Sequence[Row]) -> str:
    """Format the rows as CSV, with swept settings only."""
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
    """Sort key: numbers by value, then texts."""
    return (True, value) if isinstance(value, str) else (False, value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers in nested dicts, by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, value


def _lines(path: Path) -> list[Row]:
    """Read the objects of a JSON lines file; skips a partial line of a killed process."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [record for line in lines if (record := _parsed(line))]


def _object(path: Path) -> Row:
    return _parsed(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}


def _parsed(text: str) -> Row:
    """Parse a JSON object, {} for any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

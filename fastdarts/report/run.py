"""Read a run folder with validation: missing parts are omitted, damaged ones are reported by name."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdarts.report.style import family
from fastdarts.spaces import Architecture, ArchitectureError
from fastdarts.spaces.genotype import Genotype, GenotypeError, read_architecture, read_architecture_json

Record = dict[str, Any]
_TYPES: dict[str, Any] = dict.fromkeys(("epoch", "step"), int | None)
_TYPES |= dict.fromkeys(("train_loss", "alpha_loss", "hessian"), int | float | None)
_TYPES |= dict.fromkeys(
    ("valid", "test", "valid_ema", "test_ema", "cells", "ops", "edges", "benchmark"), dict | None
)  # dicts down to numbers
_TYPES |= {"genotype": str | None, "stopped": dict | None}
_STOPPED = {"rule": str, "after": int, "epoch": int, "why": str}  # fields of "stopped"


class ReportError(ValueError):
    """A run folder that allows no report; the message is one sentence with the reason."""


@dataclass(frozen=True)
class Run:
    """The content of a run folder.

    settings  settings.json, {} without the file
    records   metrics.jsonl, at least one of kind "epoch"
    epochs    those of kind "epoch"
    genotype  genotype.json, else that of the last epoch, else None
    result    other fields of genotype.json, {} without the file
    timing    timing.jsonl
    excluded  lines of excluded.txt
    """

    folder: Path
    settings: dict[str, Any]
    records: list[Record]
    genotype: Genotype | Architecture | None
    result: Record
    timing: list[Record]
    excluded: list[str]

    @property
    def epochs(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "epoch"]

    @property
    def has_weights(self) -> bool:
        return any(epoch.get("ops") for epoch in self.epochs)

    @property
    def planned(self) -> int | None:
        """Return the requested number of epochs."""
        epochs = self.part("settings").get("epochs")
        return epochs if isinstance(epochs, int) else None

    @property
    def stopped(self) -> Record | None:
        """Return what early stopping recorded of the end of the search: rule, after, epoch, why. None without one."""
        return self.epochs[-1].get("stopped")

    @property
    def chosen(self) -> Record:
        """Return the epoch whose genotype is the result: the last one, or the one that an early stop chose."""
        return chosen_of(self.epochs)

    @property
    def truth(self) -> Record:
        """Return the benchmark's results for the genotype, by its names and in percent; {} without a lookup."""
        known = self.result.get("benchmark")
        return known if isinstance(known, dict) and _numeric(known) else self.chosen.get("benchmark") or {}

    @property
    def is_sample(self) -> bool:
        """Return whether the images are the generated sample."""
        return bool(self.part("data").get("is_sample"))

    @property
    def data_name(self) -> str:
        """Return the last part of the data's path, or ""."""
        return Path(str(self.part("data").get("root") or "")).name

    def part(self, name: str) -> dict[str, Any]:
        """Return a dict inside settings.json, {} if missing."""
        value = self.settings.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of the genotype's cells, () without a genotype."""
        return tuple(self.genotype.wirings()) if self.genotype else ()

    def skips(self, kind: str) -> tuple[int, int]:
        """Return the number of skips and of all operations in the derived cell of a kind; (0, 0) without a genotype."""
        operations = self.genotype.operations(kind) if self.genotype else []
        return sum(family(op) == "skip" for op in operations), len(operations)


def chosen_of(epochs: Sequence[Record]) -> Record:
    """Return the epoch whose genotype is the result so far."""
    stopped = epochs[-1].get("stopped")
    number = stopped.get("epoch") if isinstance(stopped, dict) else None
    return next((epoch for epoch in epochs if number is not None and epoch.get("epoch") == number), epochs[-1])


def valid_of(epochs: Sequence[Record]) -> Record:
    """Return the last evaluation available at the end of the epoch of `chosen_of`, {} before the first."""
    until = epochs[: epochs.index(chosen_of(epochs)) + 1]
    return next((epoch["valid"] for epoch in reversed(until) if epoch.get("valid")), {})


def read_run(folder: str | Path) -> Run:
    """Read the run folder of a search, finished or not. Raises ReportError, OSError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(f"no such run folder: {folder}")
    metrics, settings, timing = (folder / name for name in ("metrics.jsonl", "settings.json", "timing.jsonl"))
    if not metrics.is_file():
        raise ReportError(f"not a search's run folder, it has no metrics.jsonl: {folder}")
    records = _lines(metrics)
    for number, record in enumerate(records, start=1):
        _check(record, f"{metrics} line {number}")
    if not any(record["kind"] == "epoch" for record in records):
        raise ReportError(f"no epoch is finished yet in {metrics}")
    path = folder / "genotype.json"
    return Run(
        folder=folder,
        settings=_object(_text(settings), str(settings)) if settings.is_file() else {},
        records=records,
        genotype=_genotype(folder, records),
        result=_object(_text(path), str(path)) if path.is_file() else {},
        timing=_lines(timing),
        excluded=[line for line in _text(folder / "excluded.txt").splitlines() if line.strip()],
    )


def _text(path: Path) -> str:
    """Return the content of a file, "" without the file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _lines(path: Path) -> list[Record]:
    """Return the objects of a file of JSON lines; skip an incomplete last line, left by a killed process."""
    *lines, rest = _text(path).split("\n")
    records = [_object(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]
    with suppress(ReportError):
        records.append(_object(rest, str(path)))
    return records


def _object(text: str, place: str) -> Record:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{place} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ReportError(f"{place} is not a JSON object")
    return record


def _check(record: Record, place: str) -> None:
    """Raise ReportError unless the record is of a known kind and its values have the right types."""
    kind = record.get("kind")
    if kind not in ("epoch", "step"):
        raise ReportError(f"{place}: kind is epoch or step, not {kind!r}")
    for name, wanted in _TYPES.items():
        value = record.get(name)
        if not isinstance(value, wanted) or (wanted == dict | None and name != "stopped" and not _numeric(value)):
            raise ReportError(f"{place}: {name} is {value!r}")
    stopped = record.get("stopped")
    if stopped is not None and {name: type(value) for name, value in stopped.items()} != _STOPPED:
        raise ReportError(f"{place}: stopped is {stopped!r}")
    if not _names(record.get("candidates", {})):
        raise ReportError(f"{place}: candidates is {record['candidates']!r}")
    if record.get(kind) is None or record[kind] < (kind == "epoch"):  # epochs count from 1
        raise ReportError(f"{place}: {kind} is {record.get(kind)!r}")


def _names(value: Any) -> bool:
    """Return True for lists of lists of text by kind of cell."""
    lists = [edges for edges in value.values() if isinstance(edges, list)] if isinstance(value, dict) else None
    if lists is None or len(lists) < len(value):
        return False
    return all(isinstance(edge, list) and all(isinstance(name, str) for name in edge) for edges in lists for edge in edges)


def _numeric(value: Any) -> bool:
    """Return True for None, numbers, and lists and dicts of such."""
    if isinstance(value, dict | list):
        return all(map(_numeric, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, int | float)


def _genotype(folder: Path, records: list[Record]) -> Genotype | Architecture | None:
    """Return the genotype of genotype.json, else of the last record that has one, or of the epoch that an early stop chose."""
    path = folder / "genotype.json"
    named = [record for record in records if record.get("genotype")]
    last = chosen_of(named)["genotype"] if named else None
    try:
        recorded = read_architecture(last) if last else None
        return read_architecture_json(_text(path)) if path.is_file() else recorded
    except (GenotypeError, ArchitectureError) as error:
        raise ReportError(f"genotype of {folder}: {error}") from error

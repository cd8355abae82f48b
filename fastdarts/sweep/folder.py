"""Sweep folder: one run folder per combination, and the combined results.

sweep.json       command, flags, axes, a row per run (settings, state, figures), the aggregated table
sweep.csv        the runs' rows
sweep.md         the table: mean ± standard deviation over the seeds
sweep.svg .png   the plot
AXIS=VALUE,...   the run folders
logs             output of each run, and submitit's files
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastdarts.data import DataError
from fastdarts.engine import RunFolder, RunFolderError, write_text
from fastdarts.engine.checkpoints import DamagedCheckpoint
from fastdarts.engine.signals import AGAIN, INTERRUPTED
from fastdarts.quoting import shortlist
from fastdarts.sweep.grid import Combination, Grid, SweepError
from fastdarts.sweep.results import epochs_of, figures

Row = dict[str, Any]
OWN = ("sweep.csv", "sweep.md", "sweep.svg", "sweep.png")
NEVER = {"state": "waiting", "status": None, "why": None}


class SweepFolder:
    """Folder of a new or continued sweep.

    rows  by run name: "state" (waiting, running, finished, failed, stopped), exit "status", "why" (the last line printed),
          the values on the axes
    """

    def __init__(self, path: Path, rows: dict[str, Row]) -> None:
        self.path, self.rows = path, rows

    @classmethod
    def open(cls, path: Path, command: str, grid: Grid, combinations: Sequence[Combination], elsewhere: bool) -> "SweepFolder":
        """Inspect `path` without changing it: a new or empty folder, or a sweep of this command, these axes and flags.

        Raises SweepError for any other folder, and for a run of different settings, naming each difference.

        elsewhere  settings resolve on another machine: each run compares them itself
        """
        rows: dict[str, Row] = {}
        moved: list[str] = []
        if path.exists() and not path.is_dir():
            raise SweepError(f"--save: {path} is a file, choose a folder")
        if (path / "sweep.json").is_file():
            rows, moved = _continued(path / "sweep.json", command, grid, elsewhere)
        elif path.is_dir():
            names = {entry.name for entry in path.iterdir()}
            if "settings.json" in names:
                raise SweepError(f"--save: {path} contains a run, not a sweep, choose another folder")
            if taken := sorted(names & {*OWN, *(combination.name for combination in combinations)}):
                raise SweepError(
                    f"--save: {path} is not a sweep folder, and a sweep would overwrite its {shortlist(taken)}: "
                    "choose another folder"
                )
        for combination in combinations:
            if not elsewhere:
                try:
                    run = RunFolder.open(path / combination.name, combination.settings)
                    if moved and run.saved is not None:
                        grid.command.compare(combination.resolved, run)
                        moved = []  # equal for all runs
                except (RunFolderError, DataError) as error:
                    raise SweepError(f"{combination.name}: {error}") from error
            rows.setdefault(combination.name, {"run": combination.name, **combination.values, **NEVER})
        folder = cls(path, rows)
        folder._look()
        return folder

    def left(self, combinations: Sequence[Combination]) -> list[Combination]:
        """Return the unfinished combinations."""
        return [combination for combination in combinations if self.rows[combination.name]["state"] != "finished"]

    def locked(self) -> AbstractContextManager[None]:
        """Context manager: creates and locks the folder. Raises RunFolderError if another process holds the lock."""
        return RunFolder(self.path).locked()

    def log(self, name: str) -> Path:
        """Return the path of the run's output."""
        return self.path / "logs" / f"{name}.txt"

    def last_line(self, name: str) -> str:
        """Return the last line printed by the run, or ""."""
        log = self.log(name)
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def finished(self, name: str) -> bool:
        """Return whether the run finished, according to its status file and its newest checkpoint, if any."""
        folder = self.path / name
        status = folder / "status"
        epochs = epochs_of(folder)
        if not epochs or not status.is_file() or not status.read_text(encoding="utf-8").startswith("finished"):
            return False
        try:
            found = RunFolder(folder).checkpoints.newest()
        except DamagedCheckpoint:
            return False  # the run reports it
        return found is None or found.state["epoch"] >= epochs[-1]["epoch"]

    def _look(self) -> None:
        """Update which runs have finished, whatever was recorded: a killed sweep records nothing."""
        for name, row in self.rows.items():
            if self.finished(name):
                row |= {"state": "finished", "status": 0, "why": None}
            elif row["state"] in ("running", "finished"):
                row |= {"state": "stopped", "status": None, "why": None}

    def ended(self, name: str, status: int, stopping: bool) -> Row:
        """Record how a run ended, possibly on a stop request; returns its row."""
        row = self.rows[name]
        stopped = stopping or status in (AGAIN, INTERRUPTED)
        state = "finished" if status == 0 and self.finished(name) else "stopped" if stopped else "failed"
        row |= {"state": state, "status": status, "why": None if state == "finished" else self.last_line(name)}
        return row

    def results(self) -> list[Row]:
        """Return the rows with the content of the run folders: figures of finished runs, and all settings."""
        return [row | figures(self.path / name, row["state"] == "finished") for name, row in self.rows.items()]

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write sweep.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "sweep.json", json.dumps(facts, indent=2) + "\n")


def _continued(path: Path, command: str, grid: Grid, elsewhere: bool) -> tuple[dict[str, Row], list[str]]:
    """Return the rows of the sweep in sweep.json, and the flags whose place has changed.

    Raises SweepError unless command, axes and flags match.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        was, axes, rows = (
            saved["command"],
            list(saved["axes"]),
            {row["run"]: _without_results(row, saved) for row in saved["runs"]},
        )
        fixed = dict(saved["fixed"])
        differences = grid.differences(fixed, elsewhere)
    except (ValueError, KeyError, TypeError) as error:
        raise SweepError(f"--save: {path} is damaged ({error}), choose another folder") from error
    if was != command:
        raise SweepError(f"--save: {path.parent} contains a sweep of {was}, choose another folder")
    if axes != list(grid.axes):
        raise SweepError(
            f"--save: {path.parent} contains a sweep over {', '.join(axes)}, not over {', '.join(grid.axes)}: "
            "give the same axes (with more values, if you like), or choose another folder"
        )
    if differences:
        raise SweepError(
            f"--save: {path.parent} contains a sweep with other settings: {'; '.join(differences)}. "
            "Give the same settings to continue it, or choose another folder"
        )
    return rows, grid.moved(fixed)


def _without_results(row: Row, saved: Mapping[str, Any]) -> Row:
    """Return the row without its figures, which are read again."""
    return {name: row[name] for name in ("run", *saved["axes"], *NEVER)}

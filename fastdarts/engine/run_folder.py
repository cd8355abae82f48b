"""Run folder: settings, measurements and checkpoints of a run.

    settings.json    settings, data, candidates, commit, versions, machine
    log.txt          printed output from the plan on
    metrics.jsonl    a line per logged step and per epoch: on a CPU, two runs of one seed write identical bytes
    timing.jsonl     a line per epoch: seconds, seconds waiting for input, images/s, and seconds of each stage
    train.txt val.txt excluded.txt    images of both splits, and excluded ones with the reason
    checkpoint.pt    complete training state: after each epoch, and every --checkpoint_minutes
    checkpoint.1.pt  the previous one, and so on: --keep_checkpoints in all
    checkpoint-best.pt    from the epoch that the session's criterion scores lowest; format in engine/checkpoints.py
    genotype.json    the cell, as JSON and as DARTS' text; with "stopped" (rule, after, epoch, why) after an early stop
    result.json      of a retraining: its accuracies (runs/retrain_session.py)
    status           one line: progress of the run (engine.status)
    .lock            locked by the process that writes the folder
and the report's files: cells, curves, reconstruction, report.html. Other files are never touched: scheduler output,
redirected consoles, system files.
"""

import fcntl
import json
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fastdarts.engine.checkpoints import Checkpoints, DamagedCheckpoint, encode, steps_of
from fastdarts.engine.files import flush, write_text
from fastdarts.quoting import shortlist
from fastdarts.settings import Settings

LINES = ("metrics.jsonl", "timing.jsonl")
BEGUN = ("train.txt", "val.txt", "excluded.txt")  # written after .lock, before settings.json: a run killed there starts over
DRAWN = ("cell_*.svg", "cell_*.png", "losses.*", "accuracy.*", "alpha.*", "collapse.*", "reconstruction.png", "report.html")
OWN = (
    *BEGUN,
    *LINES,
    *DRAWN,
    "log.txt",
    "genotype.json",
    "result.json",
    "status",
    "checkpoint*.pt",
    "trace-*.json",
    "events.out.tfevents.*",
)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a file name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class RunFolderError(ValueError):
    """Folder unusable for the run: the message gives the reason and the remedy."""


class RunFolder:
    """Folder of a new or continued run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path)
        self.saved: dict[str, Any] | None = None  # settings.json of the continued run

    @staticmethod
    def open(path: Path, settings: Settings, command: str | None = None) -> "RunFolder":
        """Inspect `path` without changing it: a new or empty folder, or a run of these settings.

        Raises RunFolderError for a folder with other content, and for a run of different settings, naming each difference.
        """
        folder = RunFolder(path)
        if not path.exists():
            parent = next(p for p in path.absolute().parents if p.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise RunFolderError(f"--save: {path} cannot be created, {parent} is not a writable folder")
            return folder
        if not path.is_dir():
            raise RunFolderError(f"--save: {path} is a file, choose a folder")
        if not folder["settings.json"].is_file():
            names = sorted(entry.name for entry in path.iterdir())
            if "sweep.json" in names:
                raise RunFolderError(f"--save: {path} contains a sweep, choose another folder")
            begun = BEGUN if ".lock" in names else ()
            if taken := [name for name in names if matches(name, OWN) and name not in begun]:
                raise RunFolderError(
                    f"--save: {path} is not a run folder, and a run would overwrite its {shortlist(taken)}: "
                    "choose another folder"
                )
            return folder
        try:
            saved = json.loads(folder["settings.json"].read_text(encoding="utf-8"))
            then = dict(saved["settings"])
            began = saved.get("command", command)
            differences = [] if began != command and command else settings.differences(then)
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{folder['settings.json']} is damaged ({error})"
            raise RunFolderError(f"--save: {problem}, choose another folder") from error
        if command and began != command:
            raise RunFolderError(f"--save: {path} contains a run of {began}, not of {command}: choose another folder")
        if differences:
            raise RunFolderError(
                f"--save: {path} contains a run with other settings: {'; '.join(differences)}. "
                "Give the same settings to continue it, or choose another folder"
            )
        folder.saved = saved
        return folder

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def locked(self) -> Generator[None]:
        """Create and lock the folder inside the context. Raises RunFolderError if another process has locked it.

        A POSIX lock: it is released whenever the process ends, and is not inherited by forked processes.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self[".lock"], "w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(
                    f"--save: another process is writing to {self.path}: wait for it, or choose another folder"
                ) from error
            if self.saved is None and self["settings.json"].exists():
                raise RunFolderError(f"--save: another process has started a run in {self.path} meanwhile: restart")
            yield

    def create(self, facts: Mapping[str, Any]) -> None:
        """Write settings.json, which makes the run resumable."""
        write_text(self["settings.json"], json.dumps(facts, indent=2) + "\n")

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a line of JSON to `name`."""
        with open(self[name], "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def last_loss(self, name: str) -> float | None:
        """Return the named loss of the last epoch in metrics.jsonl, None before the first."""
        lines = self["metrics.jsonl"].read_text(encoding="utf-8").splitlines() if self["metrics.jsonl"].exists() else []
        epochs = (json.loads(line) for line in reversed(lines) if '"kind": "epoch"' in line)
        return next((epoch.get(name) for epoch in epochs), None)

    def save(self, state: dict[str, Any], best: bool = False, keep: int = 2) -> None:
        """Write the newest of `keep` checkpoints, with `best` also as the best. Flushes earlier log lines to disk first."""
        for name in LINES:
            if self[name].exists():
                flush(self[name])
        self.checkpoints.put(encode(state), best, keep)

    def restore(self) -> dict[str, Any] | None:
        """Return the newest intact checkpoint, or None before the first. Drops later log lines, which will be written again.

        Raises RunFolderError, and changes nothing, if all checkpoints are damaged.
        """
        try:
            found = self.checkpoints.newest()
        except DamagedCheckpoint as error:
            raise RunFolderError(
                f"{error}: no checkpoint is intact; remove them to restart this run from the beginning"
            ) from error
        state = {"epoch": 0} if found is None else found.state
        kept = {name: self._lines(name, state["epoch"], steps_of(state)) for name in LINES}
        self.checkpoints.clear(found)
        for name, lines in kept.items():
            if lines is not None:
                write_text(self[name], lines)
        return None if found is None else state

    def _lines(self, name: str, epoch: int, step: int) -> str | None:
        """Return the lines up to `epoch` and `step`, without a partial last line; None if these are all lines."""
        if not self[name].exists():
            return None
        try:
            lines = self[name].read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            records = [json.loads(line) for line in whole]
            kept = [
                line
                for line, record in zip(whole, records, strict=True)
                if record["epoch"] <= epoch or (record.get("kind") == "step" and record["step"] <= step)
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self[name]} is damaged ({error}): remove it to continue without the lines so far"
            ) from error
        return None if kept == lines else "".join(kept)

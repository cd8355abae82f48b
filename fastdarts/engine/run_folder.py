"""The folder of a run: what it was asked for, what it measured, where it can go on.

    settings.json    settings, data, candidates, commit, versions, machine
    log.txt          what was printed from the plan on
    metrics.jsonl    a line for each logged step and each epoch: on a CPU, two runs of one seed write the same bytes
    timing.jsonl     a line for each epoch: seconds, how many of them waiting for input, images/s, and seconds of each stage
    train.txt val.txt excluded.txt    the images of both splits, and those left out with the reason
    checkpoint.pt    everything the next epoch depends on, after each epoch
    genotype.json    the cell, as JSON and as the customary text
    status           one line: where the run stands (engine.status)
and what the report draws: cells, curves, reconstruction, report.html.
"""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdarts.config import Settings
from fastdarts.engine.files import load_checkpoint, save_checkpoint, write_text

BEGUN = {"train.txt", "val.txt", "excluded.txt"}  # written before settings.json: a run that was killed there begins anew


class RunFolderError(ValueError):
    """A folder that cannot be the run's: the message says why and what to do."""


class RunFolder:
    """A folder that a run writes, or continues."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved: dict[str, Any] | None = None  # settings.json of the run that is continued

    @staticmethod
    def open(path: Path, settings: Settings) -> "RunFolder":
        """Look at `path` without changing anything: a new or empty folder, or a run of these settings.

        Raises RunFolderError for a folder of something else and for a run of other settings, each of which is named.
        """
        folder = RunFolder(path)
        if not path.exists():
            parent = next(p for p in path.absolute().parents if p.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise RunFolderError(f"--save: {path} cannot be made, {parent} is not a folder that can be written to")
            return folder
        if not path.is_dir():
            raise RunFolderError(f"--save: {path} is a file, name a folder")
        if not folder["settings.json"].is_file():
            if {entry.name for entry in path.iterdir()} - BEGUN:
                raise RunFolderError(f"--save: {path} holds other files and no run, name an empty or a new folder")
            return folder
        try:
            saved = json.loads(folder["settings.json"].read_text(encoding="utf-8"))
            differences = settings.differences(dict(saved["settings"]))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{folder['settings.json']} is damaged ({error})"
            raise RunFolderError(f"--save: {problem}, name another folder") from error
        if differences:
            raise RunFolderError(
                f"--save: {path} holds a run of other settings: {'; '.join(differences)}. "
                "Give the same settings to continue it, or name another folder"
            )
        folder.saved = saved
        return folder

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    def create(self, facts: Mapping[str, Any]) -> None:
        """Write settings.json, after which the folder holds a run that can be continued."""
        write_text(self["settings.json"], json.dumps(facts, indent=2) + "\n")

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line of JSON to `name`."""
        with open(self[name], "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint."""
        save_checkpoint(self["checkpoint.pt"], state)

    def restore(self) -> dict[str, Any] | None:
        """The checkpoint, or None before the first. Lines logged after it are dropped: they will be written again.

        Raises RunFolderError when the file is damaged.
        """
        path, state, finished = self["checkpoint.pt"], None, 0
        if path.exists():
            try:
                state = load_checkpoint(path)
                finished = state["epoch"]
            except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, TypeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise RunFolderError(f"{path} is damaged ({reason}): remove it to begin this run again") from error
        for name in ("metrics.jsonl", "timing.jsonl"):
            self._drop_after(name, finished)
        return state

    def _drop_after(self, name: str, epoch: int) -> None:
        """Keep the lines of epochs up to `epoch`; a half-written last line goes too."""
        if not self[name].exists():
            return
        try:
            lines = self[name].read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epoch]
        except (ValueError, KeyError) as error:
            raise RunFolderError(f"{self[name]} is damaged ({error}): remove it to go on without the lines so far") from error
        if kept != lines:
            write_text(self[name], "".join(kept))

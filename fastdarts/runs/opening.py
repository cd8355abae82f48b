"""What all runs share: open the folder, record how the run began, run the session."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdarts import provenance
from fastdarts.data import DataError
from fastdarts.engine import RankLost, RanksDisagree, RunFolder, Session, World
from fastdarts.protocols import DivergedError
from fastdarts.settings import Settings

log = logging.getLogger("fastdarts")


class Recorded(Protocol):
    """Images of a run, which its folder records."""

    def write(self, folder: RunFolder) -> None: ...
    def facts(self) -> dict[str, Any]: ...


def open_folder(
    command: str,
    path: str | None,
    about: str,
    settings: Settings,
    world: World,
    check: Callable[[RunFolder], None] = lambda folder: None,
) -> RunFolder:
    """Open the run folder on rank 0; the other ranks get one with the saved run. Raises RunFolderError.

    path     None: a folder in the current one, named by the command, `about` and the time of rank 0
    check    raises RunFolderError if the folder's run does not fit
    """

    def opened() -> RunFolder:
        name = f"{command.replace('_', '-')}-{about}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = RunFolder.open(Path(path or name), settings, command)
        check(folder)
        return folder

    found = world.on_rank_zero(opened, lambda folder: (folder.path, folder.saved))
    if world.is_main:
        return found
    place, saved = found
    folder = RunFolder(Path(path) if path else place)
    folder.saved = saved
    return folder


def begin(
    hold: Callable[[AbstractContextManager[None]], None], facts: Mapping[str, Any], images: Recorded, folder: RunFolder
) -> None:
    """Create the folder of a new run, locked for the lifetime of `hold`."""
    hold(folder.locked())
    images.write(folder)
    folder.create(facts)


def facts_of(command: str, settings: Settings, images: Recorded, *, is_sample: bool) -> dict[str, Any]:
    """Return the entries of settings.json that all runs have."""
    return {
        "command": command,
        "settings": asdict(settings),
        "data": images.facts() | {"is_sample": is_sample},
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }


def say_what_changed(folder: RunFolder, threads: int, sync_bn: bool, world: World) -> None:
    """Log how a continued run differs from its start, and the effect."""
    if folder.saved is None or not world.is_main:
        return
    ranks, before = folder.saved.get("ranks", 1), folder.saved["settings"].get("threads", threads)
    if ranks != world.size:
        norm = "" if sync_bn else ", and BatchNorm's statistics come from different parts of a batch"
        log.warning(
            f"the run started with {ranks} ranks and continues with {world.size}: same images, but sums round differently{norm}"
        )
    elif before != threads:
        log.warning(f"the run started with {before} threads and continues with {threads}: torch's sums may round differently")


def draw_apart(world: World) -> None:
    """Reseed torch's generators per rank, so that noise and dropout differ between ranks, as their images do.

    Each rank's seed is derived from the generators' state; a single process keeps its generators unchanged.
    """
    if not world.is_single:
        torch.manual_seed(int(torch.randint(2**62, ())) + world.rank)


def run_session(session: Session) -> None:
    """Run a session; log what ends it early. Raises the session's errors."""
    try:
        session.run()
    except (DivergedError, RanksDisagree, RankLost, OSError) as error:
        log.error(f"stopped: {error}")
        raise
    except DataError as error:  # a file that was good when verified
        raise DataError(f"{error}; restore the file, then the same command continues the run") from error
